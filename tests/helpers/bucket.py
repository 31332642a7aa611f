"""An object store on this machine: a server of the S3 protocol, its requests, and the files of its bucket."""

import contextlib
import logging
import re
import urllib.request

from moto.server import ThreadedMotoServer
from pyarrow import fs

NAME = "bucket"


class Bucket:
    """A bucket that is served at `endpoint`.

    Attributes:
      scheme: of its addresses.
      secret: the key to the bucket.
      endpoint: the server's address.
      environment: variables with which a process finds the server, and its credentials.
      requests: method and key of every request so far, such as "PUT run/sae/manifest.json".
    """

    scheme, secret = "s3", "a-secret-key"

    def __init__(self, endpoint):
        self.endpoint, self.requests = endpoint, []
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }

    def files(self, folder):
        """The content of every object of a folder, by its path in it."""
        address = self.endpoint.removeprefix("http://")
        store = fs.S3FileSystem(
            access_key="testing", secret_key=self.secret, region="us-east-1", scheme="http", endpoint_override=address
        )
        return objects(store, folder)

    def written(self):
        """The keys that were written, in order; each part of a large one too."""
        puts = [request.removeprefix("PUT ") for request in self.requests if request.startswith("PUT ")]
        return [key for key in puts if not key.endswith("/")]  # pyarrow's marks of empty folders


def objects(store, folder):
    """The content of every object of a folder of the bucket, by its path in it."""
    path = f"{NAME}/{folder}"
    found = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {
        info.path.removeprefix(f"{path}/"): store.open_input_stream(info.path).read()
        for info in found
        if info.type == fs.FileType.File
    }


class _Requests(logging.Handler):
    def __init__(self, requests):
        super().__init__()
        self._requests = requests

    def emit(self, record):
        found = re.search(rf"([A-Z]+) /{NAME}/([^? ]*)", record.getMessage())
        if found:
            self._requests.append(f"{found[1]} {found[2]}")


@contextlib.contextmanager
def served():
    """Serves an empty bucket as long as the body runs."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    server.start()
    bucket = Bucket("http://{}:{}".format(*server.get_host_and_port()))
    log, handler = logging.getLogger("werkzeug"), _Requests(bucket.requests)
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        urllib.request.urlopen(urllib.request.Request(f"{bucket.endpoint}/moto-api/reset", method="POST"))
        urllib.request.urlopen(urllib.request.Request(f"{bucket.endpoint}/{NAME}", method="PUT"))
        yield bucket
    finally:
        log.removeHandler(handler)
        server.stop()
