"""Prompts stay on this machine: what is refused, before what, and what no setting of the environment changes."""

import asyncio
import logging
import socket
import sys

import httpx2
import pytest

from interp import stage
from interp.llm import egress
from interp.scorers.judge import Question
from maira_jax.errors import UserError
from tests.helpers.interp_run import config, make_workdir
from tests.helpers.judge import detect, explain, explain_task, make_client, serve

EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_network: list[tuple[str, tuple]] | None = None


def _hook(event, arguments):
    if _network is not None and event in EVENTS:
        _network.append((event, arguments))


sys.addaudithook(_hook)


@pytest.fixture
def network():
    """Everything that Python does with sockets and name services while the test runs."""
    global _network
    _network = []
    yield _network
    _network = None


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://10.0.0.5:8000/v1",
        "http://0.0.0.0:8000/v1",
        "http://[2001:db8::1]:8000/v1",
        "http://localhost.example.org/v1",
        "http://127.0.0.1.example.org/v1",
        "http://hospital-server:8000/v1",
    ],
)
@pytest.mark.parametrize("images", [0, 30])
def test_another_machine_is_refused_before_any_byte(tmp_path, network, url, images):
    cfg = config(judge="llm")
    cfg.judge.update({"base_url": url, "model": "m", "images": images})
    with pytest.raises(UserError, match="MIMIC-CXR's data-use agreement forbids.*--allow_remote"):
        stage.run(cfg, tmp_path)
    assert network == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("127.0.0.1:8000", "is not an address"),
        ("ftp://127.0.0.1/v1", "is not an address"),
        ("http://127.0.0.1:port/v1", "is not an address"),
        ("http://user:secret@127.0.0.1/v1", "holds a user, a password"),
        ("http://127.0.0.1/v1?key=secret", "holds a user, a password"),
        ("http://secret@127.0.0.1/v1", "holds a user, a password"),
        ("http://127.0.0.1/v1#secret", "holds a user, a password"),
        ("http://user:s3#secret@127.0.0.1/v1", "holds a user, a password"),
        ("http://user:s3/secret@127.0.0.1/v1", "holds a user, a password"),
        ("http://user:secret@[::1/v1", "holds a user, a password"),
        ("http://user:secret@127.0.0.1:99999/v1", "holds a user, a password"),
        ("ftp://user:secret@host/", "holds a user, a password"),
        ("http://user:a secret@127.0.0.1/v1", "holds a user, a password"),
        ("user:secret@127.0.0.1/v1", "holds a user, a password"),
        ("http://user:secret\uff20127.0.0.1/v1", "is not an address"),
        ("http://user:secret/v1", "is not an address"),
        ("http://[::1/v1/secret", "is not an address"),
        ("http://127.0.0.1:0/v1", "names port 0 of 127.0.0.1"),
        ("https://127.0.0.1:00/v1", "names port 0 of 127.0.0.1"),
        ("http:///v1", "is not an address"),
        ("http://127.0.0.1/v1\r\nX:1", "holds a space or a control character"),
        ("http://127.0.0.1/v 1", "holds a space or a control character"),
    ],
)
def test_addresses_that_are_none_are_refused_without_repeating_secrets(url, words):
    with pytest.raises(UserError, match=words) as error:
        egress.check(url, allow_remote=True)
    assert "secret" not in str(error.value)


def test_no_stage_writes_an_address_with_a_password_down(tmp_path):
    cfg = config()
    cfg.judge.base_url = "http://user:secret@127.0.0.1/v1"
    with pytest.raises(UserError, match="judge.base_url holds a user, a password") as error:
        stage.run(cfg, make_workdir(tmp_path, 160))
    assert "secret" not in str(error.value)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_this_machine_has_several_names(monkeypatch):
    for url in ("http://127.0.0.1:8000/v1", "http://127.9.9.9/v1", "http://[::1]:80/v1", "http://localhost:8000/v1"):
        assert egress.check(url, allow_remote=False).addresses
    for addresses in (["10.0.0.5"], ["127.0.0.1", "10.0.0.5"], ["10.0.0.5", "127.0.0.1"]):
        found = [(2, 1, 6, "", (address, 0)) for address in addresses]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, found=found, **k: found)
        with pytest.raises(UserError, match="names localhost, which is not this machine"):
            egress.check("http://localhost:8000/v1", allow_remote=False)


def test_names_below_localhost_are_looked_up_and_one_that_cannot_be_is_refused(monkeypatch):
    asked = []

    def look_up(host, *arguments, **options):
        asked.append(host)
        if host != "judge.localhost":
            raise OSError("no such name")
        return [(2, 1, 6, "", ("127.0.0.7", 0)), (2, 2, 17, "", ("127.0.0.7", 0)), (2, 1, 6, "", ("127.0.0.8", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert egress.check("http://judge.localhost/v1", allow_remote=False).addresses == ("127.0.0.7", "127.0.0.8")
    with pytest.raises(UserError, match="names other.localhost, which is not this machine"):
        egress.check("http://other.localhost/v1", allow_remote=False)
    assert asked == ["judge.localhost", "other.localhost"]


def test_the_flag_allows_one_named_server():
    endpoint = egress.check("https://api.openai.com/v1", allow_remote=True)
    assert (endpoint.host, endpoint.port, endpoint.addresses) == ("api.openai.com", 443, ())
    with pytest.raises(UserError, match=r"unencrypted: use https://, or an SSH tunnel \(ssh -L 80:127\.0\.0\.1:80 "):
        egress.check("http://judge.example.org/v1", allow_remote=True)


@pytest.mark.parametrize(
    ("url", "port"), [("http://127.0.0.1/v1", 80), ("https://127.0.0.1/v1", 443), ("http://127.0.0.1:80/v1", 80)]
)
def test_an_address_without_a_port_has_the_schemes(url, port):
    endpoint = egress.check(url, allow_remote=False)
    assert endpoint.port == port
    transport = egress.GuardedTransport(endpoint, "127.0.0.1", 1)
    assert transport._target(httpx2.URL(url)) == httpx2.URL(url)


def test_a_server_that_was_allowed_by_name_is_reached_by_name():
    endpoint = egress.check("https://judge.example.org/v1", allow_remote=True)
    url = httpx2.URL("https://judge.example.org/v1/chat")
    assert egress.GuardedTransport(endpoint, "judge.example.org", 1)._target(url) == url


def test_one_transport_sends_to_its_server_after_it_has_refused_another():
    transport = egress.GuardedTransport(egress.check("http://localhost:8000/v1", allow_remote=False), "127.0.0.1", 1)
    good, bad = httpx2.URL("http://localhost:8000/v1/chat"), httpx2.URL("http://10.0.0.5:8000/v1/chat")
    for _ in range(2):
        assert transport._target(good) == httpx2.URL("http://127.0.0.1:8000/v1/chat")
        with pytest.raises(UserError, match="was stopped"):
            transport._target(bad)


def test_requests_go_to_the_pool_with_the_fewest_and_all_pools_are_closed(monkeypatch):
    class Pool:
        closed = 0

        async def aclose(self):
            self.closed += 1

    async def send():
        used, go_on = [], asyncio.Event()

        async def wait(request, pool):
            used.append(transport._pools.index(pool))
            await go_on.wait()
            if len(used) == 7:
                raise OSError("the last one fails")

        monkeypatch.setattr(egress, "bounded", wait)
        transport = egress.GuardedTransport(endpoint, "127.0.0.1", 3 * egress._POOL)
        pools = transport._pools = [Pool() for _ in transport._pools]
        request = httpx2.Request("POST", "http://127.0.0.1:8000/v1")
        tasks = [asyncio.create_task(transport.handle_async_request(request)) for _ in range(6)]
        await asyncio.sleep(0)
        assert sorted(used) == [0, 0, 1, 1, 2, 2] and transport._in_flight == [2, 2, 2]
        go_on.set()
        await asyncio.gather(*tasks)
        with pytest.raises(OSError, match="the last one fails"):
            await transport.handle_async_request(request)
        assert transport._in_flight == [0, 0, 0]
        await transport.aclose()
        assert [pool.closed for pool in pools] == [1, 1, 1]

    endpoint = egress.check("http://127.0.0.1:8000/v1", allow_remote=False)
    asyncio.run(send())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(111, "Connection refused"), r"\(Connection refused\)"),
        (OSError("odd"), r"\(odd\)"),
        (TimeoutError(), r"\(no answer\)"),
    ],
)
def test_why_a_server_cannot_be_reached_is_said(monkeypatch, error, words):
    async def fail(address, port):
        raise error

    monkeypatch.setattr(asyncio, "open_connection", fail)
    with pytest.raises(UserError, match=words):
        asyncio.run(egress.reach(egress.check("http://127.0.0.1:8000/v1", allow_remote=False)))


def test_certificates_of_the_environment_are_not_used(monkeypatch):
    """Read, this file would be an error, since it is not there."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent/authority.pem")
    endpoint = egress.check("https://judge.example.org/v1", allow_remote=True)
    egress.GuardedTransport(endpoint, "judge.example.org", 1)


def test_connections_are_divided_among_pools():
    endpoint = egress.check("http://127.0.0.1:8000/v1", allow_remote=False)
    made = [egress.GuardedTransport(endpoint, "127.0.0.1", n) for n in (1, egress._POOL, egress._POOL + 1)]
    assert [len(transport._pools) for transport in made] == [1, 1, 2]


def test_only_the_checked_address_is_connected_to(tmp_path, network, monkeypatch):
    """Neither proxies of the environment nor the name service come between."""
    with serve() as proxy, serve() as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        network.clear()
        client = make_client(server.url.replace("127.0.0.1", "localhost"), tmp_path)
        assert explain(client, [explain_task(0), explain_task(1)])[1].name
        touched = {arguments[1][:2] for event, arguments in network if event == "socket.connect"}
        looked_up = {arguments[0] for event, arguments in network if event == "socket.getaddrinfo"}
        assert ("127.0.0.1", server.port) in touched
        assert touched <= {("127.0.0.1", server.port), ("::1", server.port)}
        assert looked_up <= {"localhost", "127.0.0.1", "::1"}
        assert server.record()["requests"] == 2
        assert proxy.record()["outcomes"] == {"connections": 2}  # those of this test


def test_a_redirect_is_not_followed(tmp_path):
    with serve() as other, serve() as server:
        server.control(redirect=f"{other.url}/chat/completions")
        with pytest.raises(UserError, match=r"redirects \(HTTP 307\), which is not followed"):
            explain(make_client(server.url, tmp_path), [explain_task(0)])
        assert other.record()["outcomes"] == {"connections": 2} and other.record()["requests"] == 0


def test_the_transport_itself_sends_nowhere_else(network):
    endpoint = egress.check("http://127.0.0.1:8000/v1", allow_remote=False)

    async def send(url):
        transport = egress.GuardedTransport(endpoint, "127.0.0.1", 4)
        async with httpx2.AsyncClient(transport=transport) as client:
            await client.post(url, json={})

    before = list(network)
    for url in ("http://10.0.0.5:8000/v1", "http://127.0.0.1:8001/v1", "https://127.0.0.1:8000/v1", "http://a.test/"):
        with pytest.raises(UserError, match="was stopped: prompts go to http://127.0.0.1:8000/v1 only"):
            asyncio.run(send(url))
    assert network == before


def test_a_server_that_is_not_there_is_one_sentence(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=rf"no server can be reached at http://127.0.0.1:{port}/v1 \(.*\): start it"):
        explain(make_client(f"http://127.0.0.1:{port}/v1", tmp_path), [explain_task(0)])


def test_the_next_address_of_this_machine_is_tried_where_one_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        endpoint = egress.Endpoint(f"http://localhost:{port}/v1", "http", "localhost", port, ("127.0.0.9", "127.0.0.1"))
        assert asyncio.run(egress.reach(endpoint)) == "127.0.0.1"


def test_white_space_around_the_key_is_not_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", " sk-right\r\n")
    with serve(key="sk-right") as server:
        assert all(detect(make_client(server.url, tmp_path), [Question("x", ("findings: A.",))]))


@pytest.mark.parametrize("mode", ["live", "batch"])
@pytest.mark.parametrize("key", ["sk-s\u00fccret", "sk\nsecret", "sk-secret\x7f", "sk-secret\udcff"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(tmp_path, monkeypatch, network, mode, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    client = make_client("http://127.0.0.1:9/v1", tmp_path, mode=mode)
    with pytest.raises(UserError, match="environment variable OPENAI_API_KEY holds a line break or") as error:
        detect(client, [Question("x", ("findings: A.",))])
    assert "cret" not in str(error.value)
    assert not any(event == "socket.connect" for event, _ in network)


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path, monkeypatch, capfd, caplog):
    secret = "sk-no-one-may-read-this"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    caplog.set_level(logging.DEBUG)
    workdir = make_workdir(tmp_path, 160)
    with serve(key=secret) as server:
        cfg = config(judge="llm", n_score=20)
        cfg.judge.update({"base_url": server.url, "model": "rule"})
        stage.run(cfg, workdir)
        assert {headers["authorization"] for headers in server.record()["headers"]} == {f"Bearer {secret}"}
        monkeypatch.setenv("OPENAI_API_KEY", f"{secret}-wrong")
        with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY") as error:
            detect(make_client(server.url, tmp_path / "other"), [Question("x", ("findings: A.",))])
    assert secret not in str(error.value)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"answers.sqlite", "manifest.json", "features.parquet", "summary.json"} <= {path.name for path in written}
    assert not any(secret.encode() in path.read_bytes() for path in written)
    out, err = capfd.readouterr()
    assert secret not in out + err + caplog.text
