"""Signals are heard whichever thread receives them, and whatever the main thread waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cutaway.cli import codes

WAITING = """
import signal, sys, threading
from cutaway.cli.interrupts import interruptible

def send():
    # To this very thread: the main thread's waiting is not ended by it, as by a signal that comes just before it.
    signal.pthread_kill(threading.get_ident(), signal.{name})

with interruptible() as interrupts:
    heard = threading.Event()
    interrupts.cancel.on_cancel(heard.set)
    threading.Timer(0.2, send).start()
    heard.wait()
    {then}
sys.exit(interrupts.code)
"""


def ended(then: str, name: str) -> subprocess.CompletedProcess[str]:
    script = WAITING.format(then=then, name=name)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", codes.INTERRUPTED), ("SIGTERM", codes.TERMINATED)])
def test_a_signal_that_another_thread_receives_cancels(name: str, code: int) -> None:
    process = ended("pass", name)
    assert (process.returncode, process.stderr) == (code, "")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", codes.INTERRUPTED), ("SIGTERM", codes.TERMINATED)])
def test_a_second_one_ends_at_once(name: str, code: int) -> None:
    process = ended("threading.Timer(0.2, send).start(); threading.Event().wait(20); sys.exit('it went on')", name)
    assert (process.returncode, process.stderr) == (code, "")


def test_what_was_there_before_comes_back() -> None:
    import signal

    from cutaway.cli.interrupts import interruptible

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    earlier = signal.set_wakeup_fd(-1)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(earlier) == -1
