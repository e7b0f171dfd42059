"""`Client` and `AsyncClient` behind the same calls: what holds for one has to hold for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

from cutaway import AsyncClient, Client, CutResult, Detection

DRIVERS = ("threads", "asyncio")


class Driven(Protocol):
    """Methods of a client that return when they are done, whichever client it is."""

    def cut(self, image: Any, **arguments: Any) -> CutResult: ...
    def detect(self, image: Any, **arguments: Any) -> Detection: ...
    def composite(self, image: Any, onto: Any, **arguments: Any) -> Any: ...
    def upscale(self, image: Any, scale: int = 2, **arguments: Any) -> Any: ...
    def health(self, **arguments: Any) -> Any: ...
    def models(self, **arguments: Any) -> Any: ...
    def cut_many(self, images: Any, **arguments: Any) -> list[Any]: ...

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """Run ``call(client)`` for each at the same time: the results or exceptions, in their order."""
        ...


class _Threads:
    def __init__(self, client: Client) -> None:
        self.client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def cut_many(self, images: Any, **arguments: Any) -> list[Any]:
        return list(self.client.cut_many(images, **arguments))

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        def one(call: Callable[[Any], Any]) -> Any:
            try:
                return call(self.client)
            except Exception as error:
                return error

        with ThreadPoolExecutor(len(calls)) as pool:
            return list(pool.map(one, calls))


class _Asyncio:
    def __init__(self, client: AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        self.client = client
        self.loop = loop

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *given, **named: self.loop.run_until_complete(method(*given, **named))

    def cut_many(self, images: Any, **arguments: Any) -> list[Any]:
        async def main() -> list[Any]:
            return [outcome async for outcome in self.client.cut_many(images, **arguments)]

        return self.loop.run_until_complete(main())

    def together(self, calls: Sequence[Callable[[Any], Any]]) -> list[Any]:
        async def main() -> list[Any]:
            return await asyncio.gather(*(call(self.client) for call in calls), return_exceptions=True)

        return self.loop.run_until_complete(main())


@contextmanager
def driven(driver: str, urls: str | Sequence[str], **arguments: Any) -> Iterator[Driven]:
    """A client of one kind, "threads" or "asyncio", in a loop of its own; closed in the end."""
    if driver == "threads":
        with Client(urls, **arguments) as client:
            yield _Threads(client)
        return
    loop = asyncio.new_event_loop()
    try:
        another = AsyncClient(urls, **arguments)
        try:
            yield _Asyncio(another, loop)
        finally:
            loop.run_until_complete(another.close())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()
