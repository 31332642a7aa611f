"""What keeps patient data on this machine: the one way by which prompts, text and images, reach a server.

MIMIC-CXR's data-use agreement forbids sharing its data with third parties. So requests go to this machine's loopback
addresses and nowhere else, unless the user names another server and allows it by flag.
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
from urllib.parse import urlsplit

import httpx2

from interp.llm.bounded import bounded
from maira_jax.errors import UserError
from maira_jax.run.config import refuse_secrets

# Connections of one pool. Pools walk through all their connections for every request, so many small ones are faster.
_POOL = 16
_CONNECT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A server that prompts may be sent to.

    Attributes:
      base_url: the address in the configuration, e.g. "http://127.0.0.1:8000/v1".
      scheme, host, port: the parts of that address.
      addresses: the loopback addresses of the host; empty for a remote server that the user has allowed.
    """

    base_url: str
    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...]


def check(base_url: str, allow_remote: bool) -> Endpoint:
    """Decides whether prompts may go to `base_url`. No name but localhost is looked up, and nothing is sent.

    What is not known to be an address is not repeated: a mistyped one may hold a password anywhere.

    Raises:
      UserError: it is no address of a server, or a remote one and `allow_remote` is False.
    """
    refuse_secrets("judge.base_url", base_url)
    if not base_url.isprintable() or " " in base_url:
        raise UserError("judge.base_url holds a space or a control character: correct it")
    refusal = UserError("judge.base_url is not an address: it looks like http://127.0.0.1:8000/v1")
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError:
        raise refusal from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise refusal
    if port is None:
        port = {"http": 80, "https": 443}[url.scheme]
    if port == 0:
        raise UserError(f"judge.base_url names port 0 of {url.hostname}, at which no server can be: correct it")
    addresses = _loopback(url.hostname)
    if not addresses and allow_remote:
        if url.scheme == "http":
            raise UserError(
                f"judge.base_url is http:// to {url.hostname}, another machine, and prompts would cross the network "
                f"unencrypted: use https://, or an SSH tunnel (ssh -L {port}:127.0.0.1:{port} {url.hostname}) and "
                f"http://127.0.0.1:{port}"
            )
        return Endpoint(base_url, url.scheme, url.hostname, port, ())
    if not addresses:
        raise UserError(
            f"judge.base_url names {url.hostname}, which is not this machine, and prompts hold patient data, which "
            "MIMIC-CXR's data-use agreement forbids to share with third parties: use a server at 127.0.0.1, or give "
            "--allow_remote if the agreements on all studies of this run permit that server"
        )
    return Endpoint(base_url, url.scheme, url.hostname, port, addresses)


def _loopback(host: str) -> tuple[str, ...]:
    """The addresses of a host if all of them are loopback addresses, else none."""
    with contextlib.suppress(ValueError):
        return (host,) if ipaddress.ip_address(host).is_loopback else ()
    if host != "localhost" and not host.endswith(".localhost"):
        return ()
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    return addresses if all(ipaddress.ip_address(address).is_loopback for address in addresses) else ()


async def reach(endpoint: Endpoint) -> str:
    """Opens and closes a connection.

    Returns:
      The address or name that answered.

    Raises:
      UserError: nobody listens there.
    """
    problem = ""
    for address in endpoint.addresses or (endpoint.host,):
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, writer = await asyncio.open_connection(address, endpoint.port)
        except OSError as error:  # a TimeoutError is one
            problem = error.strerror or str(error) or "no answer"
            continue
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return address
    raise UserError(f"no server can be reached at {endpoint.base_url} ({problem}): start it, or change judge.base_url")


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends to one endpoint only: any other address, whatever it comes from, is refused before a connection is opened.

    Proxies and certificates of the environment are not used. A request to a loopback endpoint goes to the address that
    was checked; its name is not looked up again.

    Args:
      endpoint: the only server that may be sent to (see `check`).
      address: the address at which it answered (see `reach`).
      connections: how many requests may be under way at a time.
    """

    def __init__(self, endpoint: Endpoint, address: str, connections: int):
        self._endpoint = endpoint
        self._address = address if endpoint.addresses else None
        limits = httpx2.Limits(max_connections=_POOL, max_keepalive_connections=_POOL)
        tls = httpx2.create_ssl_context(trust_env=False)
        self._pools = [
            httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits)
            for _ in range(-(-connections // _POOL))
        ]
        self._in_flight = [0] * len(self._pools)
        self._checked: tuple[httpx2.URL, httpx2.URL] | None = None  # the newest address, and where it leads

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.url = self._target(request.url)
        request.extensions = {**request.extensions, "sni_hostname": self._endpoint.host}
        pool = min(range(len(self._pools)), key=self._in_flight.__getitem__)
        self._in_flight[pool] += 1
        try:
            return await bounded(request, self._pools[pool])
        finally:
            self._in_flight[pool] -= 1

    def _target(self, url: httpx2.URL) -> httpx2.URL:
        """Where a request for `url` goes."""
        if self._checked is not None and self._checked[0] == url:
            return self._checked[1]
        port = url.port or {"http": 80, "https": 443}.get(url.scheme)
        if (url.scheme, url.host, port) != (self._endpoint.scheme, self._endpoint.host, self._endpoint.port):
            stopped = f"{url.scheme}://{url.host}:{port}"
            raise UserError(f"a request to {stopped} was stopped: prompts go to {self._endpoint.base_url} only")
        self._checked = (url, url if self._address is None else url.copy_with(host=self._address))
        return self._checked[1]

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()
