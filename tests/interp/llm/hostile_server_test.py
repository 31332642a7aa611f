"""Servers that send what no server should: without end, compressed, nested, with counts that cannot be true."""

import asyncio
import contextlib
import gzip
import json
import threading

import openai._base_client
import pytest

from interp.llm import batch_api, bounded
from interp.llm.client import ChatClient
from maira_jax.errors import UserError
from tests.helpers.judge import detect, detect_questions, judge_config, make_client, serve

GOOD = '{"answers": [{"example": 1, "fires": 1}, {"example": 2, "fires": 0}]}'


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.0)
    monkeypatch.setattr(batch_api, "_MIN_POLL_S", 0.01)


def completion(content=GOOD, **fields):
    return {"choices": [{"message": {"content": content}}], **fields}


def response(body, *headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = ("HTTP/1.1 200 OK", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@contextlib.contextmanager
def raw_server(answer, forever=b""):
    """Sends `answer(method, path)` to each request, then `forever` again and again, if that is given."""

    async def serve_one(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                length = next((line for line in head if line.lower().startswith("content-length")), ": 0")
                await reader.readexactly(int(length.partition(":")[2]))
                method, path, _ = head[0].split(" ")
                writer.write(answer(method, path.partition("?")[0]))
                while forever:
                    writer.write(forever)
                    await writer.drain()
                    await asyncio.sleep(0)
                await writer.drain()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve_one, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        server.close()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


NESTED = b"[" * 200_000 + b"]" * 200_000
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNK = b"10000\r\n" + b"a" * 65536 + b"\r\n"
LATE, UNREAD = "the server did not answer in time", "its answer was not read: it is "
LARGE, COMPRESSED = UNREAD + "larger than", UNREAD + "compressed"
MALFORMED = "what came back was no chat completion"


@pytest.mark.parametrize(
    ("sent", "forever", "reason"),
    [
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK, LARGE),
        (HEAD + b"Content-Length: 9999999999\r\n\r\n", b"", LARGE),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"9\r\ndata: {}\n\r\n", LATE),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 4096, "the connection broke"),  # more of a head than is read
        (b"HTTP/1.1 200 OK\r\nX: ", b"", LATE),
        (HEAD + b"Content-Length: 10\r\n\r\n", b"", LATE),
        (response(gzip.compress(b"a" * 2**20, mtime=0), "Content-Encoding: gzip"), b"", COMPRESSED),
        (response(NESTED), b"", MALFORMED),
        (response({"choices": [{"message": None}]}), b"", MALFORMED),
        (response({"choices": {"a": 1}}), b"", MALFORMED),
        (response(completion([1, 2])), b"", MALFORMED),
        (response(b"\xff\xfe"), b"", MALFORMED),
        (response(completion(NESTED.decode())), b"", "its answers did not have the form that was asked for"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_answer_costs_one_request(tmp_path, monkeypatch, sent, forever, reason):
    monkeypatch.setattr(bounded, "MAX_ANSWER_BYTES", 2**20)
    with raw_server(lambda *_: sent, forever) as url:
        client = make_client(url, tmp_path, attempts=1, timeout=0.5 if reason == LATE else 30.0)
        assert detect(client, detect_questions(1)) == [None]
    ((found, count),) = client.usage()["failed"].items()
    assert found.startswith(reason) and count == 1


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -(10**6), "completion_tokens": -5, "total_tokens": -1},
        {"prompt_tokens": float("nan"), "completion_tokens": float("inf"), "total_tokens": float("nan")},
        {"prompt_tokens": "many", "completion_tokens": [], "total_tokens": {}},
        {"prompt_tokens": 10**400, "completion_tokens": True, "total_tokens": 10**400},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        [3],
        "usage",
        None,
    ],
    ids=str,
)
def test_counts_that_cannot_be_true_do_not_defeat_the_budget(tmp_path, usage):
    with raw_server(lambda *_: response(completion(usage=usage))) as url:
        prices = {"price_in": 1000.0, "price_out": 1000.0, "max_cost": 3.0, "parameters": {"max_tokens": 20}}
        client = make_client(url, tmp_path, attempts=1, concurrency=2, tokens_per_minute=1e7, **prices)
        with pytest.raises(UserError, match="judge.max_cost of .* is used up"):
            detect(client, detect_questions(100))
        spent = client.usage()
        assert 2 < spent["cost"] <= 3 and spent["answers"] < 100


@pytest.mark.parametrize(
    "base_url", ["http://127.0.0.1:80\r\nX: 1/v1", "http://127.0.0.1/v1\n", "http://127.0.0.1/ v1"]
)
def test_an_address_with_control_characters_is_refused(tmp_path, base_url):
    with pytest.raises(UserError, match="judge.base_url .* a space or a control character"):
        make_client(base_url, tmp_path)


@pytest.mark.parametrize("host", ["example.org", "192.0.2.1", "[2001:db8::1]"])
def test_prompts_cross_no_network_unencrypted(tmp_path, host):
    config = judge_config(f"http://{host}:8000/v1", allow_remote=True)
    with pytest.raises(UserError, match="another machine, and prompts would cross the network unencrypted: use https"):
        ChatClient.open(config, tmp_path)


BATCH = {"id": "batch_0", "object": "batch", "status": "completed", "output_file_id": "file-1"}
LINE = {"custom_id": "?", "response": {"status_code": 200, "body": completion()}}
FORM = "what came back has another form"
UNANSWERED = {"the provider's batches did not answer it": 1}


@pytest.mark.parametrize(
    ("batch", "lines", "ends"),
    [
        (BATCH | {"status": "confused"}, LINE, FORM),
        (BATCH | {"status": None}, LINE, FORM),
        ([BATCH], LINE, FORM),
        (BATCH | {"request_counts": {"completed": "all"}}, LINE, FORM),
        (BATCH | {"request_counts": [1]}, LINE, FORM),
        (BATCH | {"request_counts": {"completed": float("inf"), "failed": 0}}, LINE, FORM),
        (BATCH | {"request_counts": {"completed": float("nan"), "failed": 0}}, LINE, FORM),
        (BATCH | {"request_counts": {"completed": 0, "failed": 10**400}}, LINE, FORM),
        (BATCH | {"request_counts": {"completed": -1, "failed": 1}}, LINE, FORM),
        (BATCH | {"request_counts": {"completed": True, "failed": 0}}, LINE, FORM),
        (BATCH | {"errors": {"data": [{}]}}, LINE, None),
        (BATCH | {"errors": {"data": 3}}, LINE, FORM),
        (BATCH | {"output_file_id": 7}, LINE, FORM),
        (BATCH | {"id": None}, LINE, FORM),
        (BATCH | {"id": "batch\ud800"}, LINE, FORM),
        (BATCH, b"", UNANSWERED),
        (BATCH, b"\xff\xfe\x00\n\n{", UNANSWERED),
        (BATCH, NESTED, UNANSWERED),
        (BATCH, [1], UNANSWERED),
        (BATCH, {"custom_id": 3}, UNANSWERED),
        (BATCH, {"response": {}}, UNANSWERED),
        (BATCH, LINE | {"response": None}, UNANSWERED),
        (BATCH, LINE | {"response": {"status_code": "200", "body": completion()}}, UNANSWERED),
        (BATCH, LINE | {"response": {"status_code": 200, "body": [completion()]}}, UNANSWERED),
        (BATCH, LINE | {"response": {"status_code": 200, "body": {"choices": [{"message": "yes"}]}}}, UNANSWERED),
        (BATCH, LINE | {"response": {"status_code": 200, "body": completion(usage=[1])}}, None),
        (BATCH, LINE | {"response": {"status_code": 200, "body": completion(NESTED.decode())}},
         {"its answers did not have the form that was asked for": 1}),
    ],
)  # fmt: skip
def test_malformed_batches_end_in_a_sentence_or_in_a_request_without_answer(tmp_path, batch, lines, ends):
    (question,) = detect_questions(1)
    asked = []

    def answer(method, path):
        if path == "/v1/files":
            return response({"id": "file-0", "object": "file"})
        if path.startswith("/v1/files/"):
            key = json.loads((tmp_path / "judge" / "batches" / "unanswered.jsonl").read_text())["key"]
            sent = lines if isinstance(lines, bytes) else json.dumps(lines).replace('"?"', json.dumps(key)).encode()
            return response(sent)
        if path == "/v1/batches" and method == "GET":
            return response({"object": "list", "data": [], "has_more": False})
        asked.append(path)
        return response(batch)

    with raw_server(answer) as url:
        client = make_client(url, tmp_path, mode="batch", attempts=1)
        if isinstance(ends, str):
            with pytest.raises(UserError, match=ends):
                detect(client, [question])
        else:
            (verdict,) = detect(client, [question])
            assert (verdict is None) == bool(ends) and client.usage()["failed"] == (ends or {})
            assert not (tmp_path / "judge" / "batches").exists()
    assert len(asked) >= 1


def batch_server(tmp_path, batch, sent, list_batches):
    """Serves one batch; `sent` makes the file of its answers of the keys that were asked."""

    def answer(method, path):
        if path == "/v1/files":
            return response({"id": "file-0", "object": "file"})
        if path.startswith("/v1/files/"):
            lines = (tmp_path / "judge" / "batches" / "unanswered.jsonl").read_text().splitlines()
            return response(sent([json.loads(line)["key"] for line in lines]))
        if path == "/v1/batches" and method == "GET":
            return response(list_batches())
        return response(batch)

    return raw_server(answer)


@pytest.mark.parametrize("batch", [BATCH, BATCH | {"error_file_id": "file-1"}])
def test_only_the_first_line_of_a_request_is_recorded(tmp_path, batch):
    def sent(keys):
        good = [json.dumps(LINE | {"custom_id": key}) for key in keys]
        refused = [json.dumps({"custom_id": keys[0], "response": {"status_code": 400, "body": {}}})]
        return "\n".join(good + good * 50 + refused * 50).encode()

    with batch_server(tmp_path, batch, sent, lambda: {"object": "list", "data": []}) as url:
        client = make_client(url, tmp_path, mode="batch", attempts=2, price_in=1.0, price_out=1.0)
        assert all(detect(client, detect_questions(3)))
        assert client.usage()["answers"] == 3 and client.usage()["failed"] == {}


def test_a_list_of_batches_without_end_is_not_read_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_api, "_MAX_PAGES", 3)
    listed = []

    def sent(keys):
        return "\n".join(json.dumps(LINE | {"custom_id": key}) for key in keys).encode()

    def page():
        listed.append({"id": f"other-{len(listed)}", "object": "batch", "metadata": {}})
        return {"object": "list", "data": listed[-1:], "has_more": True}

    with batch_server(tmp_path, BATCH, sent, page) as url:
        assert all(detect(make_client(url, tmp_path, mode="batch"), detect_questions(1)))
    assert len(listed) == 3


def test_a_batch_that_the_provider_has_lost_is_asked_again(tmp_path, monkeypatch):
    async def killed(*arguments):
        raise KeyboardInterrupt

    with serve(batch_polls=-1) as server:
        client = make_client(server.url, tmp_path, mode="batch")
        with monkeypatch.context() as patched:
            patched.setattr(batch_api._BatchRun, "_collect", killed)
            with pytest.raises(KeyboardInterrupt):
                detect(client, detect_questions(2))
        client.close()
    known = {"batch_0": False}

    def forgets(method, path):
        if path == "/v1/batches/batch_0" and not known["batch_0"]:
            known["batch_0"] = True
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"
        return response({})

    with raw_server(forgets) as url:
        again = make_client(url, tmp_path, mode="batch")
        with pytest.raises(UserError, match="does not know a batch that it has taken"):
            detect(again, detect_questions(2))
        again.close()
    with serve(batch_polls=0) as server:  # nothing waits for the lost one any more
        assert all(detect(make_client(server.url, tmp_path, mode="batch"), detect_questions(2)))


def test_a_batch_of_unusable_answers_is_not_paid_for_again_and_again(tmp_path):
    with serve(wrong_text="odd", batch_polls=0) as server:
        client = make_client(server.url, tmp_path, mode="batch", attempts=8)
        with pytest.raises(UserError, match="20 requests .* the form that was asked for"):
            detect(client, detect_questions(30, "odd"))
        assert server.record()["requests"] == 30
        assert not list((tmp_path / "judge" / "batches").glob("*.json"))  # what was answered leaves no prompt
