"""The servers that a client was given, asked by threads and by asyncio; the rules stand in :mod:`cutaway.turns`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from cutaway.cancel import Cancel, closed
from cutaway.contract.errors import CutawayError, ServiceError
from cutaway.resilience import Deadline, Retries, drive, drive_async
from cutaway.transports.base import InferRequest, ModelInfo
from cutaway.turns import Answer, AsyncEndpoint, Endpoint, Rules
from cutaway.wire import Tensor

__all__ = ["Answer", "AsyncEndpoint", "AsyncEndpoints", "Endpoint", "Endpoints"]


class Endpoints(Rules[Endpoint]):
    """Equal servers, asked in turn; safe to share between threads."""

    def __init__(self, members: Sequence[Endpoint], *, always_ask: bool = True) -> None:
        super().__init__(members, always_ask=always_ask)
        self._closing = Cancel()

    def infer(
        self,
        request: InferRequest,
        deadline: Deadline,
        retries: Retries,
        cancel: Cancel | None = None,
        *,
        nobody_else: bool = False,
    ) -> Answer:
        """Ask one server after the other until one answers or another try is not worth it.

        Args:
            request: its `timeout_s` is replaced by what is left of the deadline.
            deadline: for everything together.
            retries: of this call; their budget is shared between calls.
            cancel: ends the request at the server, and waiting.
            nobody_else: does this kind of work, so that servers which all rest are asked nevertheless.

        Raises:
            InputError: the picture or the options are at fault; nobody else is asked.
            ProcessingTimeout: the deadline passed.
            RequestCancelled: by `cancel`, or because this was closed meanwhile.
            ServerRefused: all servers refused.
            ServerUnavailable, InferenceError: of a server that was asked last. Details of every error tell under
                "requests" how many were sent.
        """

        def perform(step: Endpoint | float) -> dict[str, Tensor] | None:
            self._check(cancel)
            if not isinstance(step, Endpoint):
                self._pause(step, cancel)
                self._check(cancel)
                return None
            try:
                return step.transport.infer(replace(request, timeout_s=deadline.left_s), cancel)
            except RuntimeError as error:
                # The connection was closed before the request went out.
                if isinstance(error, CutawayError) or not self._closing.cancelled:
                    raise
                raise closed() from None

        return drive(self.asking(deadline, retries, nobody_else), perform)

    def models(self, names: Sequence[str], deadline: Deadline) -> list[ModelInfo]:
        """What the first server that answers says of these models.

        Raises:
            CutawayError: of the last one, where none answers.
        """
        *others, last = self._round()
        for member in others:
            with suppress(ServiceError):
                return member.transport.models(names, deadline.left_s / 2)
        return last.transport.models(names, deadline.left_s)

    def close(self) -> None:
        """End what is under way, and the connections."""
        self._closing.cancel()
        for member in self.members:
            member.transport.close()

    def _check(self, cancel: Cancel | None) -> None:
        if cancel is not None:
            cancel.check()
        if self._closing.cancelled:
            raise closed()

    def _pause(self, seconds: float, cancel: Cancel | None) -> None:
        over = Cancel()
        unregister = [each.on_cancel(over.cancel) for each in (cancel, self._closing) if each is not None]
        try:
            over.wait(seconds)
        finally:
            for each in unregister:
                each()


class AsyncEndpoints(Rules[AsyncEndpoint]):
    """The same as :class:`Endpoints` for asyncio; cancelling the task ends the request at the server."""

    def __init__(self, members: Sequence[AsyncEndpoint], *, always_ask: bool = True) -> None:
        super().__init__(members, always_ask=always_ask)
        self._closing = False
        self._pauses: set[asyncio.Future[None]] = set()

    async def infer(
        self, request: InferRequest, deadline: Deadline, retries: Retries, *, nobody_else: bool = False
    ) -> Answer:
        """See :meth:`Endpoints.infer`."""

        async def perform(step: AsyncEndpoint | float) -> dict[str, Tensor] | None:
            self._check()
            if not isinstance(step, AsyncEndpoint):
                await self._pause(step)
                self._check()
                return None
            try:
                return await step.transport.infer(replace(request, timeout_s=deadline.left_s))
            except RuntimeError as error:
                if isinstance(error, CutawayError) or not self._closing:
                    raise
                raise closed() from None

        return await drive_async(self.asking(deadline, retries, nobody_else), perform)

    async def models(self, names: Sequence[str], deadline: Deadline) -> list[ModelInfo]:
        """See :meth:`Endpoints.models`."""
        *others, last = self._round()
        for member in others:
            with suppress(ServiceError):
                return await member.transport.models(names, deadline.left_s / 2)
        return await last.transport.models(names, deadline.left_s)

    async def aclose(self) -> None:
        """See :meth:`Endpoints.close`."""
        self._closing = True
        here = asyncio.get_running_loop()
        for pause in self._pauses:
            if pause.get_loop() is here and not pause.done():
                pause.set_result(None)
        for member in self.members:
            await member.transport.aclose()

    def _check(self) -> None:
        if self._closing:
            raise closed()

    async def _pause(self, seconds: float) -> None:
        pause = asyncio.get_running_loop().create_future()
        self._pauses.add(pause)
        try:
            await asyncio.wait({pause}, timeout=seconds)
        finally:
            self._pauses.discard(pause)
