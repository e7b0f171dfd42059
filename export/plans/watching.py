"""What TensorRT says while it builds: all of it into a file, errors kept for people, progress on one line."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import IO, Any

ON_TERMINAL_S, IN_FILE_S = 1.0, 30.0
"""How often the line is written anew on a terminal, and how often there is a line where there is none."""


def make_logger(trt: Any, file: IO[str]) -> Any:
    """A TensorRT logger that writes every message into `file`.

    Its `errors` are the messages of errors, as they came.
    """

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


def make_monitor(trt: Any, progress: "Progress") -> Any:
    """A TensorRT progress monitor that tells `progress`; None where this TensorRT has none (before 9)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Called from several threads. An exception here would end the process."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            progress.enter(phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress.step(phase, step)
            return not progress.stopped.is_set()

        def phase_finish(self, phase: str) -> None:
            progress.leave(phase)

    return Monitor()


class Progress:
    """One line on stderr: what is done at the moment, how far it is, and for how long already.

    birefnet_trt: Timing graph nodes 34/210, 75 s
    """

    def __init__(self, subject: str, stream: IO[str] | None = None) -> None:
        self.subject = subject
        self.stopped = threading.Event()
        self._stream = sys.stderr if stream is None else stream
        self._phases: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._writer = threading.Thread(target=self._write, daemon=True)

    def enter(self, phase: str, steps: int) -> None:
        with self._lock:
            self._phases[phase] = (0, steps)

    def step(self, phase: str, step: int) -> None:
        with self._lock:
            if phase in self._phases:
                self._phases[phase] = (step + 1, self._phases[phase][1])

    def leave(self, phase: str) -> None:
        with self._lock:
            self._phases.pop(phase, None)

    def line(self) -> str:
        """The innermost phase with its steps."""
        with self._lock:
            phase, (done, steps) = next(reversed(self._phases.items()), ("building", (0, 0)))
        count = f" {done}/{steps}" if steps > 1 else ""
        return f"{self.subject}: {phase}{count}, {time.monotonic() - self._began:.0f} s"

    def _write(self) -> None:
        terminal = self._stream.isatty()
        while not self._ended.wait(ON_TERMINAL_S if terminal else IN_FILE_S):
            print(
                f"\r\x1b[K{self.line()}" if terminal else self.line(), end="" if terminal else "\n", file=self._stream
            )
            self._stream.flush()
        if terminal:
            print("\r\x1b[K", end="", file=self._stream, flush=True)

    def __enter__(self) -> "Progress":
        self._writer.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._writer.join()


@contextlib.contextmanager
def stoppable(progress: Progress) -> Iterator[None]:
    """Ctrl-C asks TensorRT to stop after its step instead of raising within its callbacks, which would end the process.

    Raises:
        KeyboardInterrupt: afterwards, where it was pressed.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
        progress.stopped.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if progress.stopped.is_set():
        raise KeyboardInterrupt
