"""Ctrl-C and SIGTERM: what is in flight is cancelled, what is done is kept.

A handler in Python runs in the main thread when that next executes Python. A signal that another thread of the process
received, or that came just before the main thread began to wait for a lock, does not end that wait, and would be heard
only when a picture is done. So a thread listens here: the interpreter writes the number of every signal that it handles
to a socket, in the signal handler proper, whatever its threads do just then.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cutaway.cancel import Cancel
from cutaway.cli.codes import INTERRUPTED, TERMINATED

EXIT_CODES = {int(signal.SIGINT): INTERRUPTED, int(signal.SIGTERM): TERMINATED}


class Interrupts:
    """What signals do during a run.

    Attributes:
        cancel: cancelled by the first signal.
        code: the exit code that belongs to it; 0 where none came.
    """

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.code = 0

    def take(self, number: int) -> None:
        """Do what this signal asks for; others are nobody's business here."""
        code = EXIT_CODES.get(number)
        if code is None:
            return
        if self.code:
            # Whoever asks twice does not want to wait. Nothing can be left half done: see cutaway.cli.writer.
            os._exit(code)
        self.code = code
        self.cancel.cancel()

    def listen(self, numbers: socket.socket) -> None:
        """Take signals until the other end is closed."""
        while received := numbers.recv(64):
            for number in received:
                self.take(number)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Let signals cancel instead of raising; outside of the main thread they stay as they are."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    # A signal that is ignored, as in the background of a shell, stays ignored.
    numbers = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    ours, interpreters = socket.socketpair()
    interpreters.setblocking(False)
    listener = threading.Thread(target=interrupts.listen, args=(ours,), name="cutaway-signals", daemon=True)
    listener.start()
    earlier = signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
    before: dict[int, Any] = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, _heard)
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(earlier)
        interpreters.close()
        listener.join()
        ours.close()


def _heard(number: int, frame: FrameType | None) -> None:
    """Without a handler in Python there is no word to the socket."""
