"""Ctrl-C and SIGTERM: what is in flight is cancelled, what is done is kept."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from cutaway.cancel import Cancel
from cutaway.cli.codes import INTERRUPTED, TERMINATED

EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class Interrupts:
    """What signals do during a run.

    Attributes:
        cancel: cancelled by the first signal.
        code: the exit code that belongs to it; 0 where none came.
    """

    def __init__(self) -> None:
        self.cancel = Cancel()
        self.code = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        code = EXIT_CODES[signal.Signals(number)]
        if self.code:
            # Whoever asks twice does not want to wait. Nothing can be left half done: see cutaway.cli.writer.
            os._exit(code)
        self.code = code
        self.cancel.cancel()


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Let signals cancel instead of raising; outside of the main thread they stay as they are."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    # A signal that is ignored, as in the background of a shell, stays ignored.
    numbers = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupts) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if interrupts.code:
            sys.stderr.flush()
