"""Cancellation of synchronous calls, from another thread or a signal handler."""

from __future__ import annotations

from collections.abc import Callable

from cutaway.contract.errors import RequestCancelled


class Cancel:
    """Cancels the calls it was given to, now or as soon as they begin.

        cancel = Cancel()
        signal.signal(signal.SIGTERM, lambda *_: cancel.cancel())
        client.cut("photo.jpg", cancel=cancel)  # raises RequestCancelled at once, and the server stops working on it

    One may be given to any number of calls, in any thread, and is used once. It has no lock, because a signal handler
    would deadlock on one that its own thread holds; operations on the dictionary are atomic, so that every callback
    runs exactly once.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._callbacks: dict[object, Callable[[], object]] = {}

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Cancel; callbacks run in this thread."""
        self._cancelled = True
        while self._callbacks:
            try:
                _, callback = self._callbacks.popitem()
            except KeyError:  # another thread took it
                return
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Register a callback, called at once where this is cancelled already; returns a function to unregister.

        It must neither raise nor wait, and may still run in another thread when it was unregistered.
        """
        key = object()
        self._callbacks[key] = callback
        if self._cancelled and (waiting := self._callbacks.pop(key, None)):
            waiting()
        return lambda: self._callbacks.pop(key, None)


def cancelled() -> RequestCancelled:
    """The error of a call that its caller cancelled."""
    return RequestCancelled("The caller cancelled the request.")


def closed() -> RequestCancelled:
    """The error of a call whose client was closed meanwhile."""
    return RequestCancelled("The client was closed.")
