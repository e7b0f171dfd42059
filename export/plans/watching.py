"""What TensorRT says while it builds: all of it into a file, errors kept for people, progress as bars."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import IO, Any

from tqdm import tqdm


def make_logger(trt: Any, file: IO[str]) -> Any:
    """A TensorRT logger that writes every message into `file`; its `errors` are the messages of errors."""
    serious = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class FileLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self._lock = threading.Lock()

        def log(self, severity: Any, message: str) -> None:
            with self._lock:
                file.write(f"[{severity.name}] {message}\n")
                if severity in serious:
                    self.errors.append(message)

    return FileLogger()


def make_monitor(trt: Any, subject: str, stopped: threading.Event) -> Any:
    """A TensorRT progress monitor: a bar for each phase on a terminal, and a build that ends once `stopped` is set."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from several threads. An exception here would end the process."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._bars: dict[str, Any] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self._bars[phase] = tqdm(desc=f"{subject}: {phase}", total=steps, leave=False, disable=None)

        def step_complete(self, phase: str, _step: int) -> bool:
            if phase in self._bars:
                self._bars[phase].update()
            return not stopped.is_set()

        def phase_finish(self, phase: str) -> None:
            if phase in self._bars:
                self._bars.pop(phase).close()

    return Monitor()


@contextlib.contextmanager
def stoppable(stopped: threading.Event) -> Iterator[None]:
    """Ctrl-C asks TensorRT to stop after its step instead of raising within its callbacks, which would end the process.

    Raises:
        KeyboardInterrupt: afterwards, where it was pressed.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if stopped.is_set():
        raise KeyboardInterrupt
