"""One local cluster for all tests marked `cluster`, started when the first of them asks for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from cluster import flags

# How long an example takes depends on what else the machine does: no test may fail for it. Other examples are drawn
# in each run; `pytest --hypothesis-profile=thorough` draws many in one.
settings.register_profile("fenix", deadline=None, max_examples=40)
settings.register_profile("thorough", deadline=None, max_examples=1_000)
settings.load_profile("fenix")

# Before any test module imports Ray: it reads its flags at import.
flags.apply()

from cluster import lifecycle  # noqa: E402
from tests.postgres import PostgresServer, postgres_server  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests on the shared cluster come last: even an idle cluster takes time from everything that runs beside it.
    The demo beside one took 172 s instead of 95 on two cores."""
    items.sort(key=lambda item: "running_cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Writes a line to the terminal at once, past pytest's capture: what takes long is not silent."""
    capture = request.config.pluginmanager.get_plugin("capturemanager")

    def write(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(line, flush=True)

    return write


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that want one. Who ends it starts it again. Not every machine lets one run."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(postgres_server())
        except (OSError, RuntimeError) as error:
            pytest.skip(f"PostgreSQL does not start on this machine: {error}")
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/fenix.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A short-lived state folder. Not pytest's own: that path is too long for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="fenix"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def running_cluster(say: Callable[[str], None]) -> Iterator[lifecycle.Running]:
    """Fenix, up: catalogue, gateway, no extensions. Ends with the test run, and fails it if a process is left."""
    folder = Path(tempfile.mkdtemp(prefix="fenix"))
    settings = lifecycle.private_settings(folder)
    try:
        yield lifecycle.up(settings, say)
    finally:
        ended = lifecycle.down(settings, say)
        shutil.rmtree(folder, ignore_errors=True)
    assert ended.survivors == ()
