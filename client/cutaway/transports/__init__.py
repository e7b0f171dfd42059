"""The connections to a server: gRPC through tritonclient, HTTP through httpx."""

from __future__ import annotations

import warnings

from cutaway.transports.base import Transport
from cutaway.transports.connection import SECRET_HEADERS, Connection, InsecureTokenWarning, Tls, is_loopback

__all__ = ["Connection", "Tls", "open_transport"]


def open_transport(connection: Connection) -> Transport:
    """The transport for a server, which connects when first used; may be called outside of an event loop.

    Raises:
        OSError, ValueError: a certificate's file cannot be read.

    Warns:
        InsecureTokenWarning: see there.
    """
    _warn_of_open_secrets(connection)
    if connection.address.scheme.startswith("grpc"):
        from cutaway.transports.grpc import GrpcTransport

        return GrpcTransport(connection)
    from cutaway.transports.http import HttpTransport

    return HttpTransport(connection)


def _warn_of_open_secrets(connection: Connection) -> None:
    address = connection.address
    sent = [name for name in SECRET_HEADERS if name in connection.headers]
    if sent and not connection.encrypted and not is_loopback(address.host):
        warnings.warn(
            f"{sent[0]} goes to {address} without encryption: use {address.scheme}s://.",
            InsecureTokenWarning,
            stacklevel=4,
        )
