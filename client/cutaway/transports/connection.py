"""A connection to one server: TLS, headers, a proxy, and the event loop that it belongs to."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from cutaway.transports.base import Address

C = TypeVar("C")

SECRET_HEADERS = ("authorization", "x-api-key", "cookie", "proxy-authorization")

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_RESERVED = {  # the protocol itself sets them
    *("accept-encoding", "connection", "content-length", "content-type", "host", "te", "transfer-encoding"),
    "inference-header-content-length",
}


class InsecureTokenWarning(UserWarning):
    """A token is sent to another machine without encryption, where others can read and use it."""


@dataclass(frozen=True)
class Tls:
    """Certificates, as files in PEM form: the only trusted authorities (None: the public ones), and the client's own,
    followed by its intermediate ones, with its key, without a password (None: in `cert_file`, too)."""

    ca_file: str | PathLike[str] | None = None
    cert_file: str | PathLike[str] | None = None
    key_file: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is the key to a certificate: give cert_file, too")

    def context(self) -> ssl.SSLContext:
        """OSError where a file cannot be read, ValueError where it is no certificate or key."""
        files = [Path(file) for file in (self.ca_file, self.cert_file, self.key_file) if file is not None]
        for file in files:
            file.open("rb").close()  # because the errors of OpenSSL do not name files
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.cert_file is not None:
                # An empty password, because without one OpenSSL prompts at the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except ssl.SSLError as error:
            names = " or ".join(map(str, files))
            raise ValueError(f"{names} holds no certificates or key in PEM form, without a password: {error}") from None
        return context


@dataclass(frozen=True)
class Connection:
    """The address of a server, and what every request to it needs: headers (names in lower case), certificates, and the
    environment's HTTP proxy, masked where they have secrets. ValueError for a header that cannot be sent, certificates
    without TLS, or a proxy of another kind."""

    address: Address
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls | None = None
    proxy: str = field(default="", init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "proxy", proxy_of(self.address))
        check_headers(self.headers)
        if self.tls is not None and not self.encrypted:
            raise ValueError(f"{self.address} is reached without TLS: write {self.address.scheme}s:// to use it")

    @property
    def encrypted(self) -> bool:
        return self.address.scheme in ("grpcs", "https")


def check_headers(headers: Mapping[str, str]) -> None:
    """Check that they can be sent over both HTTP and gRPC; no value is in the ValueError's message."""
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name in _RESERVED or name.startswith("grpc-") or name.endswith("-bin"):
            raise ValueError(f"{name!r} is no name for a header of one's own (in lower case)")
        if not _VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(f"the value of the header {name!r} has to be printable ASCII without spaces around it")


def proxy_of(address: Address) -> str:
    """The environment's proxy, "" for none; ValueError where it is not ``http://host:port``, all that gRPC supports."""
    proxies = getproxies_environment()
    proxy = proxies.get("https" if address.scheme in ("grpcs", "https") else "http") or proxies.get("all", "")
    if not proxy or is_loopback(address.host) or proxy_bypass(f"{address.host.strip('[]')}:{address.port}"):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy for {address} is no http:// proxy: set another, or name the host in NO_PROXY")
    return parts.geturl()


class OneLoop(Generic[C]):
    """A client library's object that belongs to the event loop in which it is first used."""

    def __init__(self, opened: Callable[[], C]) -> None:
        self._open, self._closed = opened, False
        # The objects of parent processes are kept and not touched: their sockets are the parents', too.
        self._clients: dict[tuple[int, asyncio.AbstractEventLoop], C] = {}

    def get(self) -> C:
        """The object; RuntimeError where it is closed, or belongs to another loop."""
        if self._closed:
            raise RuntimeError("the connection is closed")
        here = os.getpid(), asyncio.get_running_loop()
        if here not in self._clients:
            if here[0] in {pid for pid, _ in self._clients}:
                raise RuntimeError("a client belongs to the event loop of its first use: make one for each loop")
            self._clients[here] = self._open()
        return self._clients[here]

    def close(self) -> C | None:
        """The object to close; None where none was opened in this loop."""
        self._closed = True
        return self._clients.pop((os.getpid(), asyncio.get_running_loop()), None)


def is_loopback(host: str) -> bool:
    """Whether a host, as an :class:`Address` has it, is this machine."""
    host = host.strip("[]").lower()
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")
