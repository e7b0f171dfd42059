"""The connections to a server: gRPC through tritonclient, HTTP through httpcore."""

from __future__ import annotations

import warnings

from cutaway.transports.base import Transport
from cutaway.transports.connection import SECRET_HEADERS, Connection, InsecureTokenWarning, Tls, is_loopback

__all__ = ["Connection", "Tls", "open_transport"]


def open_transport(connection: Connection) -> Transport:
    """The transport for a server, which connects when first used; OSError or ValueError for a certificate's file."""
    address = connection.address
    secrets = [name for name in SECRET_HEADERS if name in connection.headers]
    if secrets and not connection.encrypted and not is_loopback(address.host):
        advice = f"{secrets[0]} goes to {address} without encryption: use {address.scheme}s://."
        warnings.warn(advice, InsecureTokenWarning, stacklevel=3)
    if address.scheme.startswith("grpc"):
        from cutaway.transports.grpc import GrpcTransport

        return GrpcTransport(connection)
    from cutaway.transports.http import HttpTransport

    return HttpTransport(connection)
