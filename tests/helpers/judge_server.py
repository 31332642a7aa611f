"""An OpenAI-compatible server for tests: answers by rule from the prompt, fails on purpose, and remembers it all.

Run as a program it prints its port and serves until it is killed. `POST /control` sets the fields of `ServerSettings`;
`GET /record` gives what happened. It reads prompts as a careless model would: a line that begins with "ignore" is
obeyed, and what stands in a JSON string is data.
"""

import asyncio
import base64
import collections
import dataclasses
import email.parser
import email.policy
import hashlib
import io
import json
import random
import re
import sys

import numpy as np
from PIL import Image


@dataclasses.dataclass
class ServerSettings:
    """Shares of the requests that go wrong, and how the others are answered."""

    too_many: float = 0.0  # 429
    failing: float = 0.0  # 500
    dropping: float = 0.0
    malformed: float = 0.0  # half in the message, half in the body around it
    slow: float = 0.0
    latency_s: float = 0.0
    slow_s: float = 0.0
    retry_after: str = ""
    hold_after: int = -1  # after this many answers, requests get none
    schema: bool = True  # whether response_format is known
    key: str = ""  # the only one that is accepted
    fault_text: str = ""  # requests with this text always fail
    fault_status: int = 500
    fault_code: str = ""
    concept: str = ""  # what images are said to show
    wrong_text: str = ""  # requests with this text always get an answer of another form
    redirect: str = ""
    batch_polls: int = 2  # how often a batch is still in progress
    batch_lost: float = 0.0  # share of a batch's requests that end in an error


def explain(data):
    """The marked words that occur most, and one of the words if X-rays are shown instead: see `detect`."""
    words = collections.Counter(
        word for example in data["examples"] for run in re.findall("<<(.*?)>>", example["text"])
        for word in set(re.findall("[a-z]+", run.lower()))
    )  # fmt: skip
    word = max(sorted(words), key=words.__getitem__) if words else "nothing"
    return {"label": word, "explanation": f'Text that mentions "{word}".'}


def describe(data, pictures, concept):
    """Whether the strong images are bright, as a careless model would say it: `concept` is what it was made to say."""
    strong = [pictures[example["picture"] - 1] for example in data["examples"] if example["group"] == "strong"]
    seen = "bright" if np.mean(strong) > 128 else "dark"
    return {"concept": concept or f"{seen} images", "description": f'Images that are "{seen}".'}


def detect(data, text, pictures, name):
    """1 where the quoted word stands in an example's text, or its picture is bright; obeys what is not data."""
    if data is None or any(line.strip().lower().startswith("ignore") for line in text.splitlines()):
        numbers = [int(n) for n in re.findall(r"example\D{0,3}(\d)", text)] or [1]
        return {"answers": [{"example": n, name: 1} for n in sorted(set(numbers))]}
    word = (re.findall('"([^"]+)"', data["explanation"]) or ["?"])[0]
    answers = []
    for example in data["examples"]:
        if "picture" in example:
            yes = pictures[example["picture"] - 1] > 128
        elif name == "right":
            yes = word in " ".join(re.findall("<<(.*?)>>", example["text"].lower()))
        else:
            yes = word in example["text"].lower()
        answers.append({"example": example["example"], name: int(yes)})
    return {"answers": answers}


def compare(data):
    """Words that only one of the reports has are the changes, the quoted word is the concept."""
    word = (re.findall('"([^"]+)"', data["explanation"]) or ["?"])[0]
    before, after = ({*re.findall(r"\w+", data[name].lower())} for name in ("original", "edited"))
    changes = [{"change": other, "on_target": int(other == word)} for other in sorted(before ^ after)]
    return {"changes": changes, "concept": 2 * (word in after), "report": 2, "fluency": 1}


def find_intruder(data):
    """The example that shares fewest words with the others."""
    words = [set(re.findall("[a-z]+", example["text"].lower())) for example in data["examples"]]
    shared = [sum(len(own & other) for other in words) for own in words]
    return {"intruder": 1 + shared.index(min(shared))}


def favour(data):
    """The report that has the quoted word more often."""
    word = (re.findall('"([^"]+)"', data["explanation"]) or ["?"])[0]
    first, second = (data[name].lower().count(word) for name in ("first", "second"))
    return {"more_about": 0 if first == second else 1 + (second > first)}


def respond(body, concept=""):
    """The message that answers a chat request; see `describe` for `concept`."""
    system, content = body["messages"][0]["content"], body["messages"][-1]["content"]
    pictures = []
    if not isinstance(content, str):
        for part in content:
            if part["type"] == "image_url":
                png = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
                pictures.append(float(np.asarray(Image.open(io.BytesIO(png))).mean()))
        content = content[0]["text"]
    try:
        data = json.loads(content)
    except ValueError:
        data = None
    if '"edited"' in system:
        return json.dumps(compare(data))
    if '"intruder"' in system:
        return json.dumps(find_intruder(data))
    if '"more_about"' in system:
        return json.dumps(favour(data))
    if '"label"' in system:
        return json.dumps(explain(data))
    if '"concept"' in system:
        return json.dumps(describe(data, pictures, concept))
    return json.dumps(detect(data, content, pictures, "right" if '"right"' in system else "fires"))


class ServerState:
    """Everything that the server knows."""

    def __init__(self):
        self.settings = ServerSettings()
        self.rng = random.Random(0)
        self.answers = collections.Counter()  # digest of a request -> good answers
        self.sent = collections.Counter()  # digest -> requests
        self.outcomes = collections.Counter()
        self.bodies = []  # the last few
        self.headers = []
        self.under_way = 0
        self.first_s = self.last_s = None
        self.files, self.batches = {}, {}

    def chat(self, body):
        """(status, headers, content) of a chat request; None to drop the connection, ... to say nothing."""
        digest = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        self.sent[digest] += 1
        now = asyncio.get_running_loop().time()
        self.first_s, self.last_s = self.first_s or now, now
        if len(self.bodies) < 50:
            self.bodies.append(body)
        s, text = self.settings, json.dumps(body["messages"])
        if not s.schema and "response_format" in body:
            return self.done("no schema", 400, {}, {"error": {"message": "response_format is not supported"}})
        if s.fault_text and s.fault_text in text:
            return self.done("fault", s.fault_status, {}, {"error": {"message": "no", "code": s.fault_code}})
        if 0 <= s.hold_after <= sum(self.answers.values()):
            self.outcomes["held"] += 1
            return ...
        luck = self.rng.random()
        for share, status in ((s.too_many, 429), (s.failing, 500), (s.dropping, 0)):
            if luck < share:
                retry = {"Retry-After": s.retry_after} if s.retry_after and status == 429 else {}
                refusal = self.done(str(status or "dropped"), status, retry, {"error": {"message": "no"}})
                return refusal if status else None
            luck -= share
        message = respond(body, s.concept)
        if luck < s.malformed:
            self.outcomes["malformed"] += 1
            if self.rng.random() < 0.5:
                return 200, {}, b'{"choices": [{"message": {"content": "{\\"answ'
            message = message[: len(message) // 2]
        elif s.wrong_text and s.wrong_text in text:
            message = '{"answers": []}'
        else:
            self.answers[digest] += 1
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 10, "total_tokens": len(text) // 4 + 10}
        answer = {"id": "x", "object": "chat.completion", "model": body["model"], "usage": usage}
        answer["choices"] = [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": message}}
        ]
        return self.done("answered", 200, {}, answer)

    def done(self, name, status, headers, content):
        self.outcomes[name] += 1
        return status, headers, json.dumps(content).encode()

    def upload(self, headers, body):
        head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
        part = next(part for part in message.iter_parts() if part.get_filename())
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = part.get_payload(decode=True)
        return {"id": file_id, "object": "file", "bytes": 1, "created_at": 1, "filename": "x", "purpose": "batch"}

    def create_batch(self, body):
        batch_id = f"batch_{len(self.batches)}"
        self.batches[batch_id] = {
            "id": batch_id, "object": "batch", "endpoint": body["endpoint"], "input_file_id": body["input_file_id"],
            "completion_window": "24h", "status": "in_progress", "created_at": 1, "metadata": body["metadata"],
            "polls": 0,
        }  # fmt: skip
        self.outcomes["batch"] += 1
        return self.batches[batch_id]

    def poll(self, batch_id):
        batch = self.batches[batch_id]
        batch["polls"] += 1
        lines = self.files[batch["input_file_id"]].decode().splitlines()
        if batch["polls"] > self.settings.batch_polls >= 0 and batch["status"] == "in_progress":
            good, bad = [], []
            for line in lines:
                entry = json.loads(line)
                reply = self.chat(entry["body"])
                lost = self.rng.random() < self.settings.batch_lost or not isinstance(reply, tuple)
                status = 500 if lost else reply[0]
                content = {} if lost else json.loads(reply[2])
                done = {"custom_id": entry["custom_id"], "response": {"status_code": status, "body": content}}
                (good if status == 200 else bad).append(json.dumps(done))
            for name, done in (("output_file_id", good), ("error_file_id", bad)):
                if done:
                    batch[name] = f"file-{len(self.files)}"
                    self.files[batch[name]] = "\n".join(done).encode()
            batch["status"] = "completed"
        completed = len(lines) if batch["status"] == "completed" else 0
        return batch | {"request_counts": {"total": len(lines), "completed": completed, "failed": 0}}

    def record(self):
        return {
            "outcomes": dict(self.outcomes), "distinct": len(self.sent), "requests": sum(self.sent.values()),
            "answered": sorted(self.answers), "answered_twice": sum(n > 1 for n in self.answers.values()),
            "under_way": self.under_way, "bodies": self.bodies, "headers": self.headers,
            "seconds": (self.last_s or 0) - (self.first_s or 0), "uploads": len(self.files),
        }  # fmt: skip


class Connection(asyncio.Protocol):
    def __init__(self, state):
        self.state, self.buffer, self.held = state, b"", 0

    def connection_made(self, transport):
        self.transport = transport
        self.state.outcomes["connections"] += 1

    def connection_lost(self, error):
        self.state.under_way -= self.held

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            lines = self.buffer[:end].decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            stop = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < stop:
                return
            body, self.buffer = self.buffer[end + 4 : stop], self.buffer[stop:]
            method, path, _ = lines[0].split(" ")
            self.handle(method, path.partition("?")[0], headers, body)

    def handle(self, method, path, headers, body):
        state, settings = self.state, self.state.settings
        if path == "/control":
            state.settings = dataclasses.replace(settings, **json.loads(body))
            return self.write(200, {}, b"{}")
        if path == "/record":
            return self.write(200, {}, json.dumps(state.record()).encode())
        if len(state.headers) < 50:
            state.headers.append(headers)
        if settings.redirect:
            return self.write(307, {"Location": settings.redirect}, b"{}")
        if settings.key and headers.get("authorization") != f"Bearer {settings.key}":
            return self.write(401, {}, json.dumps({"error": {"message": headers.get("authorization")}}).encode())
        if path != "/v1/chat/completions":
            return self.write(200, {}, self.service(method, path, headers, body))
        state.under_way += 1
        reply = state.chat(json.loads(body))
        delay = settings.slow_s if state.rng.random() < settings.slow else settings.latency_s
        asyncio.get_running_loop().call_later(delay, self.finish, reply)

    def service(self, method, path, headers, body):
        """The provider's files and batches."""
        state, parts = self.state, path.split("/")[2:]
        if parts == ["files"]:
            return json.dumps(state.upload(headers, body)).encode()
        if parts[0] == "files":
            return state.files[parts[1]]
        if parts == ["batches"] and method == "POST":
            return json.dumps(state.create_batch(json.loads(body))).encode()
        if parts == ["batches"]:
            return json.dumps({"object": "list", "data": list(state.batches.values()), "has_more": False}).encode()
        return json.dumps(state.poll(parts[1])).encode()

    def finish(self, reply):
        if reply is ...:
            self.held += 1
            return
        self.state.under_way -= 1
        if reply is None:
            self.transport.abort()
        else:
            self.write(*reply)

    def write(self, status, headers, content):
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)


async def main():
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(state), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
