"""Ways to a server: gRPC and HTTP, each for threads and for asyncio.

:mod:`.base` says what a way has to do, :mod:`.connection` opens the one that an address asks for.
"""

from cutaway.transports.connection import Connection, Tls, open_async_transport, open_transport

__all__ = ["Connection", "Tls", "open_async_transport", "open_transport"]
