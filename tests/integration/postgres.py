"""A real PostgreSQL server for tests, from Debian's package: in a folder of its own, on a Unix socket, gone afterwards.

Name it as a plugin in a test module, and the fixture `postgres` is there, one server for all modules of a run:

    pytest_plugins = ["tests.integration.postgres"]

Where PostgreSQL is not installed those tests are skipped, or fail if CI_REQUIRE_POSTGRES is set.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

REQUIRED = "CI_REQUIRE_POSTGRES"
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


class PostgresServer:
    """A server with an empty database cluster; a context manager.

    PostgreSQL refuses to run as root, so that root runs it as one of the users that have no rights.

    Args:
        binaries: the folder with initdb and postgres.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = _unprivileged_user() if os.geteuid() == 0 else None
        # Not pytest's own folder: others may not enter that one, and a socket's path has to be short.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def __enter__(self) -> PostgresServer:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def database(self) -> str:
        """The address of a new, empty database."""
        self._databases += 1
        name = f"test_{self._databases}"
        with psycopg.connect(self._uri("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._uri(name)

    def stop(self) -> None:
        """End the server with everything that it has; a second call does nothing."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(2)  # SIGINT: open connections are ended
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _uri(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.folder}&user=postgres"

    def _start(self) -> None:
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        data = self.folder / "data"
        self._run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        # What it holds is thrown away, so that nothing has to reach the disk.
        quick = ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        here = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self.folder}"]
        log = (self.folder / "log").open("wb")
        with log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", data, *here, *quick],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                **self._as_user(),
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                psycopg.connect(self._uri("postgres")).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    told = (self.folder / "log").read_text(errors="replace")
                    raise RuntimeError(f"PostgreSQL did not start: {error}\n{told}") from error
            time.sleep(0.05)

    def _run(self, program: str, *arguments: object) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *map(str, arguments)],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
            **self._as_user(),
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stderr or done.stdout}")

    def _as_user(self) -> dict[str, int | list[int]]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


def find_binaries() -> Path | None:
    """The folder with PostgreSQL's programs: on the path, else the newest of Debian's; None if it is not installed."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody.")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server; `database()` gives an empty database."""
    binaries = find_binaries()
    if binaries is None:
        told = "PostgreSQL is not installed (Debian: apt install postgresql)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{told}, and {REQUIRED} is set.")
        pytest.skip(f"{told}.")
    with PostgresServer(binaries) as server:
        yield server
