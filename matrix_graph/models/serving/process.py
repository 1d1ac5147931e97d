"""A server process with its workers, its output and its end.

Why: `subprocess` alone loses grandchildren, blocks on full pipes and leaves a server running when the program is
killed. What always holds: the process runs under `_supervisor.py`, which ends it and all its descendants when `stop` is
called or this program ends in whatever way; its output is drained into a file as it comes; the secret appears neither
in that file nor in the kept lines.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from matrix_graph.errors import ServerError
from matrix_graph.files import open_private
from matrix_graph.models.client import listeners
from matrix_graph.models.client.redact import Redactor
from matrix_graph.models.serving._supervisor import descendants

_SUPERVISOR = Path(__file__).with_name("_supervisor.py")
_KEPT_LINES = 200
_LONGEST_LINE = 1 << 20


class SupervisedProcess:
    """One run of a command under the supervisor.

    Args:
        command: the argv; no secret belongs in it, since every user of the machine can read it.
        environment: the child's whole environment.
        log_path: the file that its output is appended to; made with its folder, readable by its owner only.
        stop_timeout: seconds between the request to end and SIGKILL.
        secret: replaced wherever the child prints it.
        on_line: gets each line of output, without newline and secret, in the draining thread.

    Raises:
        ServerError: the log file cannot be written, or the supervisor cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log_path: Path,
        stop_timeout: float,
        secret: str,
        on_line: Callable[[str], None],
    ) -> None:
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.log_path = log_path
        self._redact = Redactor(secret, mark="[hidden]")
        self._on_line = on_line
        self._stop_timeout = stop_timeout
        self._tail: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reports = b""
        self._lock = threading.Lock()
        try:
            log_path.parent.mkdir(parents=True, exist_ok=True)
            log = open_private(log_path)  # it may quote prompts
        except OSError as error:
            raise ServerError(
                f"The log file {log_path} cannot be written ({error}). Set another `log_path`, or name another cache "
                "folder by the environment variable MATRIX_GRAPH_CACHE."
            ) from error
        self._report_fd, report = os.pipe()
        os.set_blocking(self._report_fd, False)
        try:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", str(_SUPERVISOR), str(os.getpid()), str(report), str(stop_timeout), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(report,),
                start_new_session=True,
            )
        except OSError as error:
            log.close()
            os.close(self._report_fd)
            raise ServerError(f"{sys.executable} could not be started: {error}.") from error
        finally:
            os.close(report)
        self._drain = threading.Thread(target=self._drain_into, args=(log,), name="server-log", daemon=True)
        self._drain.start()

    def alive(self) -> bool:
        """Returns whether the child itself runs (its supervisor may still be ending workers when it does not)."""
        with self._lock:
            self._read_reports()
            if self.exit_code is None and self._supervisor.poll() is not None:
                # Killed before it could report. Its child dies with it; the child's workers may not.
                self.exit_code = self._supervisor.returncode
                self._kill_group()
            return self.exit_code is None

    def holds(self, inodes: set[int]) -> set[int]:
        """Returns which of these sockets the child or a process below it holds; Linux only."""
        return listeners.held_by(descendants(self._supervisor.pid), inodes)

    def tail(self, lines: int) -> list[str]:
        """Returns the last `lines` lines of output that are not blank, oldest first, without the secret."""
        return [line for line in self._tail.copy() if line.strip()][-lines:]

    def stop(self) -> None:
        """Ends the child and all its descendants; returns when none is left. Does nothing the second time."""
        with contextlib.suppress(BrokenPipeError):
            if self._supervisor.stdin is not None:
                self._supervisor.stdin.close()
        if self._supervisor.poll() is None:
            # A fork of this program may hold the pipe open, so the order is given by signal as well.
            self._supervisor.terminate()
            try:
                self._supervisor.wait(timeout=self._stop_timeout + 10)
            except subprocess.TimeoutExpired:
                self._kill_group()
                self._supervisor.kill()
                self._supervisor.wait()
        self.alive()
        self._drain.join(timeout=5)
        with self._lock:
            if self._report_fd >= 0:
                os.close(self._report_fd)
                self._report_fd = -1

    def _read_reports(self) -> None:
        if self._report_fd < 0:
            return
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self._report_fd, 4096):
                self._reports += chunk
        for line in self._reports.decode("ascii", "replace").splitlines():
            word, _, number = line.partition(" ")
            if word == "started":
                self.pid = int(number)
            elif word == "exited":
                self.exit_code = int(number)

    def _kill_group(self) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _drain_into(self, log: TextIO) -> None:
        output = self._supervisor.stdout
        assert output is not None  # PIPE was asked for
        with output, log:
            while raw := output.readline(_LONGEST_LINE):
                line = self._redact(raw.decode("utf-8", "replace").rstrip("\r\n"))
                with contextlib.suppress(OSError):  # a full disk must not block the server on a full pipe
                    log.write(line + "\n")
                    log.flush()
                shown = line.rpartition("\r")[2]  # a progress bar paints over itself: the last state counts
                self._tail.append(shown)
                self._on_line(shown)
