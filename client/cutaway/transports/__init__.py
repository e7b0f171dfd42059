"""The connections to a server: gRPC through tritonclient, HTTP through httpx."""

from cutaway.transports.connection import Connection, Tls, open_transport

__all__ = ["Connection", "Tls", "open_transport"]
