"""SmolLM2 behind an OpenAI-compatible server: what a small language model really answers, unusable answers included.

`python -m tests.helpers.language_server` prints its port and serves until it is killed, one request at a time. It reads
messages, `max_tokens` and `temperature`, and refuses prompts of more than `LIMIT` tokens. With `--schemas` it holds
answers to JSON schemas, as vLLM does (`pip install lm-format-enforcer`), else it refuses requests that have one.
"""

import functools
import http.server
import json
import sys
import threading

import torch

from tests.helpers import smollm2

LIMIT = 2048  # tokens of a prompt


class LanguageServer(http.server.ThreadingHTTPServer):
    """The model, which answers one request at a time."""

    def __init__(self, schemas):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.lock = threading.Lock()
        self.tokenizer, self.model = smollm2.load()
        self.schemas = SchemaTokens(self.tokenizer, self.model.config.vocab_size) if schemas else None

    def complete(self, body):
        """Status and content of the answer to a chat request."""
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        if schema and not self.schemas:
            return 400, {"error": {"message": "response_format is not supported"}}
        given = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = given["input_ids"].shape[1]
        if length > LIMIT:
            return 400, {"error": {"message": f"{length} tokens", "code": "context_length_exceeded"}}
        heat = body.get("temperature", 1.0)
        sampling = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        if schema:
            sampling["prefix_allowed_tokens_fn"] = self.schemas.after(schema)
        with self.lock, torch.no_grad():
            out = self.model.generate(**given, max_new_tokens=body.get("max_tokens", 256), **sampling)[0, length:]
        text = self.tokenizer.decode(out, skip_special_tokens=True)
        usage = {"prompt_tokens": length, "completion_tokens": len(out), "total_tokens": length + len(out)}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, {"object": "chat.completion", "model": body["model"], "usage": usage, "choices": [choice]}


class SchemaTokens:
    """What the model may write next so that its answer has the form of a JSON schema."""

    def __init__(self, tokenizer, vocab_size):
        from lmformatenforcer import TokenEnforcerTokenizerData

        special, zero = set(tokenizer.all_special_ids), tokenizer.encode("0")[-1]
        # Decoded after another token, or a space at a word's start would be lost.
        tokens = [(i, tokenizer.decode([zero, i])[1:], False) for i in range(vocab_size) if i not in special]
        decode = functools.partial(tokenizer.decode, skip_special_tokens=True)
        self.data = TokenEnforcerTokenizerData(tokens, decode, tokenizer.eos_token_id, False, vocab_size)

    def after(self, schema):
        """A function of a row and its tokens, as `generate` takes it."""
        from lmformatenforcer import JsonSchemaParser, TokenEnforcer

        enforcer = TokenEnforcer(self.data, JsonSchemaParser(schema))
        return lambda row, tokens: enforcer.get_allowed_tokens(tokens.tolist()).allowed_tokens


class ChatHandler(http.server.BaseHTTPRequestHandler):
    """Reads a chat request and writes its answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, content = self.server.complete(body)
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format, *args):
        """Says nothing."""


if __name__ == "__main__":
    server = LanguageServer("--schemas" in sys.argv)
    print(server.server_port, flush=True)
    server.serve_forever()
