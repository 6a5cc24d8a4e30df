"""Databases for tests: an SQLite file, or a real PostgreSQL server that runs as a child of the test run.

Fixtures: `sqlite_url` and `postgresql_url` are new databases with the newest schema; `database_url` is each in turn,
`database` the same, opened. SQLite is quick enough for every layer; PostgreSQL belongs in tests/integration or later.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from serve_app.stores.database import Database, open_database

USER = "tritext"
_PROGRAMS = Path("/usr/lib/postgresql")  # where Debian keeps what is not on PATH
_SETTINGS = {
    "listen_addresses": "",  # a Unix socket only
    "fsync": "off",  # what these databases hold may be lost
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "200",
}
_names = count()


class PostgreSQLServer:
    """A server over the data in a directory; `url` is its empty database, and `create_database` makes others."""

    def __init__(self, directory: Path, *, keeps_commits: bool) -> None:
        self._directory = directory
        self._settings = {**_SETTINGS, "synchronous_commit": "on"} if keeps_commits else _SETTINGS
        self.url = self.url_of("postgres")
        self.start()

    def start(self) -> None:
        """Starts it, also after `kill`; returns when it answers."""
        settings = [word for name, value in self._settings.items() for word in ("-c", f"{name}={value}")]
        command = [_program("postgres"), "-D", self._directory / "data", "-k", self._directory, *settings]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([*_unprivileged(), *command], stdout=log, stderr=log, cwd="/")
        self._wait_until_ready()

    def kill(self) -> None:
        """Ends it as a crash would: every process at once, nothing written back."""
        processes = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.wait(30)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=30)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGQUIT)  # at once, without writing anything back
        self._process.wait(30)

    def url_of(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={self._directory}"

    def create_database(self, *, template: str = "template0", name: str | None = None) -> str:
        """The name of a new database, a copy of the template."""
        name = name or f"test_{next(_names)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, statement: str, *, database: str = "postgres") -> None:
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    def _wait_until_ready(self) -> None:
        for _ in range(300):
            if self._process.poll() is not None:
                break
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"PostgreSQL did not start: {(self._directory / 'log').read_text()}")


@contextmanager
def running_postgresql(*, keeps_commits: bool = False) -> Iterator[PostgreSQLServer]:
    """A server with data of its own, for as long as the context lasts; it dies with this process.

    keeps_commits: what was committed outlives `kill`, as in a real database.
    """
    directory = Path(tempfile.mkdtemp(prefix="tritext-pg-"))  # a socket's path must be short
    try:
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(directory, "nobody")
        options = ["-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"]
        subprocess.run(
            [*_unprivileged(), _program("initdb"), "-D", directory / "data", *options],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
        )
        server = PostgreSQLServer(directory, keeps_commits=keeps_commits)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)


def _program(name: str) -> str:
    newest_first = sorted(_PROGRAMS.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]), reverse=True)
    found = shutil.which(name) or next(map(str, newest_first), None)
    if found is None:
        pytest.exit(f"the tests need PostgreSQL, and there is no {name} here; on Debian: apt install postgresql", 1)
    return found


def _unprivileged() -> list[str]:
    """What stands before a command so that it does not run as root and ends when this process does."""
    if sys.platform != "linux":
        return []
    user = ["--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    return ["setpriv", *user, "--pdeathsig=QUIT"]


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQLServer]:
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_template(postgresql_server: PostgreSQLServer) -> str:
    """The name of a database with the newest schema and nothing in it, to be copied."""
    name = postgresql_server.create_database(name="newest_schema")
    _migrate(postgresql_server.url_of(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "newest_schema.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgresql_url(postgresql_server: PostgreSQLServer, postgresql_template: str) -> Iterator[str]:
    name = postgresql_server.create_database(template=postgresql_template)
    yield postgresql_server.url_of(name)
    postgresql_server.drop_database(name)


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'tritext.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A new database with the newest schema, once of each kind."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same, one for all tests of a module."""
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        return f"sqlite:///{shutil.copy(template, tmp_path_factory.mktemp('shared') / 'tritext.db')}"
    server: PostgreSQLServer = request.getfixturevalue("postgresql_server")
    return server.url_of(server.create_database(template=request.getfixturevalue("postgresql_template")))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url) as opened:
        yield opened


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Runs the work in an event loop of its own, although one may be running here."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def _migrate(url: str) -> None:
    async def migrate() -> None:
        opened = Database(url)
        await opened.migrate()
        await opened.close()

    run_apart(migrate())
