"""Stands between a program and the server that it started, so that the server never outlives the program.

Why a process of its own: a program that is killed (SIGKILL) runs no clean-up, and a model server starts workers of its
own, some of which may leave its process group. What always holds: this file uses the standard library alone and is run
by path; its standard input is a pipe whose other end only the program holds, so the pipe's end is the order to stop,
whatever ended the program; and it exits only when no process that descends from it is left.

    python _supervisor.py PROGRAM_PID REPORT_FD STOP_SECONDS COMMAND...

On REPORT_FD it writes `started PID`, then `exited CODE` (negative: the signal, as in `subprocess`), a line each.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class _Orders:
    """Whether it is time to stop: the program's pipe ended, the program is gone, or a signal came."""

    def __init__(self, program: int) -> None:
        self._program = program
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def stop(self) -> bool:
        # A fork of the program may keep the pipe open after it: so its pid is watched as well.
        if self._signalled or os.getppid() != self._program:
            return True
        readable, _, _ = select.select([0], [], [], _POLL_SECONDS)
        return bool(readable) and not os.read(0, 1024)


def _prctl(option: int, value: int) -> None:
    """Linux only; elsewhere the process group is all that can be ended."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants(root: int) -> list[int]:
    """Returns the pids of all living processes below `root`, zombies left out; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                # The name, in parentheses, may hold spaces and parentheses itself.
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            children.setdefault(int(parent), []).append(int(entry.name) if state != "Z" else -int(entry.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        for pid in children.get(waiting.pop(), []):
            if pid > 0:
                found.append(pid)
            waiting.append(abs(pid))
    return found


def _signal_all(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, number)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _any_left(process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is None:  # asked first, so that its exit code is not lost to the reaping below
        return True
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    if descendants(os.getpid()):
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _wait_until_none_left(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _any_left(process):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS / 2)
    return True


def _end(process: "subprocess.Popen[bytes]", stop_seconds: float) -> None:
    """Ends the child and everything below it: politely, then firmly, then for good."""
    if process.poll() is None:
        # vLLM's main process ends its workers in order; a signal to all at once leaks shared memory.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=stop_seconds * 0.75)
    if not _any_left(process):
        return
    _signal_all(process.pid, signal.SIGTERM)
    if _wait_until_none_left(process, stop_seconds * 0.25):
        return
    while not _wait_until_none_left(process, 0.5):  # again and again: a process may have forked meanwhile
        _signal_all(process.pid, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    """Runs the command until it exits or the order to stop comes; returns its exit code, as a shell gives it."""
    program, report, stop_seconds, command = int(arguments[0]), int(arguments[1]), float(arguments[2]), arguments[3:]
    orders = _Orders(program)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):
            os.write(report, f"{line}\n".encode())

    # vLLM leaves its sockets behind when it is killed. A short name: the path of a socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="mg-", ignore_cleanup_errors=True) as scratch:
        try:
            process = subprocess.Popen(
                command,
                env={"VLLM_RPC_BASE_PATH": scratch, **os.environ},
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                # If this process is killed for good, its child goes with it; the program ends the rest of the group.
                preexec_fn=lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            tell("exited 127")
            return 127
        try:
            tell(f"started {process.pid}")
            while process.poll() is None and not orders.stop():
                pass
            if process.returncode is not None:
                tell(f"exited {process.returncode}")
        finally:
            _end(process, stop_seconds)
    code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
