"""Everything that a connection to one server needs, and opening it."""

from __future__ import annotations

import ipaddress
import re
import ssl
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from cutaway.transports.base import Address, AsyncMemoryTransport, InferRequest, MemoryTransport

SECRET_HEADERS = ("authorization", "x-api-key", "cookie", "proxy-authorization")

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_RESERVED = (
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "inference-header-content-length",
    "te",
    "transfer-encoding",
)
"""Headers that the protocol itself sets."""


class InsecureTokenWarning(UserWarning):
    """A token goes to another machine without encryption: everybody on the way can read and use it."""


@dataclass(frozen=True)
class Tls:
    """Certificates, as files in PEM form.

    Attributes:
        ca_file: trust only what these authorities signed; None trusts the public ones.
        cert_file: the certificate that the client shows, with those between it and its authority behind it.
        key_file: its key, without a password; None where `cert_file` holds it, too.
    """

    ca_file: str | PathLike[str] | None = None
    cert_file: str | PathLike[str] | None = None
    key_file: str | PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("key_file is the key to a certificate: give cert_file, too")

    def context(self) -> ssl.SSLContext:
        """For connections of the standard library.

        Raises:
            OSError: a file cannot be read.
            ValueError: it does not hold what it should.
        """
        # The files are opened first, because the errors about them below do not name them.
        for file in (self.ca_file, self.cert_file, self.key_file):
            if file is not None:
                Path(file).open("rb").close()
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except ssl.SSLError as error:
            raise ValueError(f"{self.ca_file} holds no certificates in PEM form: {error}") from None
        if self.cert_file is not None:
            try:
                # An empty password instead of none, which would be asked for at the terminal.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
            except ssl.SSLError as error:
                raise ValueError(
                    f"{self.cert_file} and {self.key_file or 'itself'} are not a certificate and its key in PEM form, "
                    f"without a password: {error}"
                ) from None
        return context


@dataclass(frozen=True)
class Connection:
    """Where a server is, and what it is told and shown with every request.

    Attributes:
        address: where it is.
        headers: sent with every request; names in lower case. Not shown anywhere, since they hold tokens.
        tls: for grpcs:// and https:// only; None trusts the public authorities.

    Raises:
        ValueError: a header that cannot be sent, or certificates for an address without TLS.
    """

    address: Address
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tls: Tls | None = None

    def __post_init__(self) -> None:
        check_headers(self.headers)
        if self.tls is not None and not self.encrypted:
            raise ValueError(f"{self.address} is reached without TLS: write {self.address.scheme}s:// to use it")

    @property
    def encrypted(self) -> bool:
        return self.address.scheme in ("grpcs", "https")

    def headers_of(self, request: InferRequest) -> dict[str, str]:
        """What is sent with a request.

        Raises:
            ValueError: a header of the request cannot be sent.
        """
        if not request.headers:
            return dict(self.headers)
        check_headers(request.headers)
        return {**self.headers, **request.headers}


def check_headers(headers: Mapping[str, str]) -> None:
    """
    Raises:
        ValueError: a header that cannot be sent over both HTTP and gRPC. Its value is not told.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or name in _RESERVED or name.startswith("grpc-") or name.endswith("-bin"):
            raise ValueError(f"{name!r} is no name for a header of one's own (in lower case)")
        if not _VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(f"the value of the header {name!r} has to be printable ASCII without spaces around it")


def open_transport(connection: Connection) -> MemoryTransport:
    """The transport for a server; connects when first used.

    Raises:
        OSError, ValueError: a certificate's file cannot be read.
    """
    _warn_of_open_secrets(connection)
    return reopen_transport(connection)


def reopen_transport(connection: Connection) -> MemoryTransport:
    """The same as :func:`open_transport` for a connection that was opened before: warns of nothing."""
    if connection.address.scheme.startswith("grpc"):
        from cutaway.transports.grpc_sync import GrpcTransport

        return GrpcTransport(connection)
    from cutaway.transports.http_sync import HttpTransport

    return HttpTransport(connection)


def open_async_transport(connection: Connection) -> AsyncMemoryTransport:
    """The same as :func:`open_transport` for asyncio; may be called outside of an event loop."""
    _warn_of_open_secrets(connection)
    if connection.address.scheme.startswith("grpc"):
        from cutaway.transports.grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(connection)
    from cutaway.transports.http_async import AsyncHttpTransport

    return AsyncHttpTransport(connection)


def is_loopback(host: str) -> bool:
    """Whether a host, as an :class:`Address` has it, is this machine."""
    host = host.strip("[]").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _warn_of_open_secrets(connection: Connection) -> None:
    address = connection.address
    sent = [name for name in SECRET_HEADERS if name in connection.headers]
    if sent and not connection.encrypted and not is_loopback(address.host):
        warnings.warn(
            f"{sent[0]} goes to {address} without encryption: use {address.scheme}s://.",
            InsecureTokenWarning,
            stacklevel=4,
        )
