"""Keeps one program (Triton, the gate): starts it, and ends all of it when it dies, on a signal, or without its owner.

A process of its own between the supervisor and the program, so that nothing is left behind whatever happens to either:
even when the supervisor is killed with SIGKILL, this process sees its standard input close, ends the program and its
children, and removes their shared memory. Run as `python -I -S keeper.py SPEC` with SPEC in JSON:

    command     what to start
    owner       process id of the supervisor
    grace_s     seconds between asking the program to end and killing it
    shm_prefix  how the names of its shared memory regions in /dev/shm begin, "" for none
    own_stdout  whether the program has a standard output of its own; it is the same as standard error where not
    log         the file that standard error is, which is cut when it has grown to `log_max_bytes`; 0 for never

It writes the program's process id and a newline to standard output once it is started, after which comes what the
program writes there, and ends with its exit status, or 128 + the signal that killed it. The first SIGTERM asks it to
end, the second kills it.

Only the standard library, and little of it: this process lives as long as the server does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2

FILES_MAX = 2**16
"""Open files that a program may have where the system allows them: the usual 1,024 end with as many idle callers."""


def main(spec: dict[str, object]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    # Model processes whose parent dies become children of this process, which can then wait for their end.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    stops: list[int] = []
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: stops.append(number))

    command = [str(part) for part in spec["command"]]  # type: ignore[attr-defined]
    log, log_max_bytes = str(spec["log"]), int(str(spec["log_max_bytes"]))
    child = _start(libc, command, own_stdout=bool(spec["own_stdout"]))
    os.write(1, f"{child}\n".encode())
    owner, grace_s = int(str(spec["owner"])), float(str(spec["grace_s"]))
    kill_at: float | None = None
    watched = [0, wake_read]
    status: int | None = None
    while status is None:
        ready, _, _ = select.select(watched, [], [], 0.5)
        if wake_read in ready:
            os.read(wake_read, 4096)
        if 0 in ready and not os.read(0, 4096):
            watched.remove(0)
            stops.append(signal.SIGTERM)
        if os.getppid() != owner and not stops:
            stops.append(signal.SIGTERM)
        if stops and kill_at is None:
            kill_at = time.monotonic() + grace_s
            os.kill(child, signal.SIGTERM)
        if len(stops) > 1 or (kill_at is not None and time.monotonic() > kill_at):
            os.kill(child, signal.SIGKILL)
        if 0 < log_max_bytes < os.fstat(2).st_size:
            _cut_log(log, log_max_bytes)
        status = _reap(child)
    _end_session()
    if spec["shm_prefix"]:
        for region in Path("/dev/shm").glob(f"{spec['shm_prefix']}*"):  # noqa: S108 - POSIX shared memory
            region.unlink(missing_ok=True)
    return status


def _cut_log(log: str, most: int) -> None:
    """Keep the log's last part beside it, and empty it: whoever has it open goes on at its new end."""
    with contextlib.suppress(OSError), open(log, "rb") as file, open(f"{log}.1", "wb") as kept:  # noqa: PTH123 - Path is slower to load
        file.seek(-most, os.SEEK_END)
        left = most
        while left > 0 and (part := file.read(min(left, 2**20))):
            kept.write(part)
            left -= len(part)
    os.ftruncate(2, 0)


def _raise_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _ignore_fchmod(libc: ctypes.CDLL) -> None:
    """Let fchmod do nothing from now on, and succeed: the Python backend creates its regions in shared memory as the
    umask says (0600), and then opens them to all users (0644) by that call, pictures included."""
    if platform.machine() != "x86_64":
        return
    filters = (
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, 3, 0xC000003E),  # another than x86-64: allow
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, 91),  # fchmod:
        (0x06, 0, 0, 0x00050000),  # return 0
        (0x06, 0, 0, 0x7FFF0000),  # allow
    )
    code = b"".join(struct.pack("HBBI", *each) for each in filters)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(filters), ctypes.addressof(buffer)))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def _start(libc: ctypes.CDLL, command: list[str], *, own_stdout: bool) -> int:
    owner = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != owner:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if not own_stdout:
            os.dup2(2, 1)
        os.umask(0o077)
        _raise_file_limit()
        _ignore_fchmod(libc)
        os.execv(command[0], command)  # noqa: S606 - a fixed program, no shell wanted
    except OSError as error:
        os.write(2, f"error: cannot start {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)


def _reap(child: int) -> int | None:
    """Collect whatever has ended. The exit status of `child` once it is among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            found = code if code >= 0 else 128 - code


def _end_session() -> None:
    """Kill what is left of this process's session, and wait until it is gone."""
    me, session = os.getpid(), os.getsid(0)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [pid for pid in session_members(session) if pid != me]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(0)
        if not left:
            return
        time.sleep(0.01)


def session_members(session: int) -> list[int]:
    """Ids of the session's processes, those that ended but are not collected yet left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # pid (name) state ppid pgrp session …; the name may hold spaces and brackets.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                members.append(int(entry.name))
    return members


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
