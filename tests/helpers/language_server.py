"""SmolLM2 behind an OpenAI-compatible server: what a small language model really answers, unusable answers included.

`python -m tests.helpers.language_server` prints its port and serves until it is killed, one request at a time. It reads
messages, `max_tokens` and `temperature`, knows no JSON schemas, and refuses prompts of more than `LIMIT` tokens.
"""

import http.server
import json
import threading

import torch

from tests.helpers import smollm2

LIMIT = 2048  # tokens of a prompt


class LanguageServer(http.server.ThreadingHTTPServer):
    """The model, which answers one request at a time."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), ChatHandler)
        self.tokenizer, self.model = smollm2.load()
        self.lock = threading.Lock()

    def complete(self, body):
        """Status and content of the answer to a chat request."""
        if "response_format" in body:
            return 400, {"error": {"message": "response_format is not supported"}}
        given = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = given["input_ids"].shape[1]
        if length > LIMIT:
            return 400, {"error": {"message": f"{length} tokens", "code": "context_length_exceeded"}}
        heat = body.get("temperature", 1.0)
        sampling = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        with self.lock, torch.no_grad():
            out = self.model.generate(**given, max_new_tokens=body.get("max_tokens", 256), **sampling)[0, length:]
        text = self.tokenizer.decode(out, skip_special_tokens=True)
        usage = {"prompt_tokens": length, "completion_tokens": len(out), "total_tokens": length + len(out)}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        return 200, {"object": "chat.completion", "model": body["model"], "usage": usage, "choices": [choice]}


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
    server = LanguageServer()
    print(server.server_port, flush=True)
    server.serve_forever()
