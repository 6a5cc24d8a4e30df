"""What a service on this machine keeps between its starts: secrets in files that only their owner can read."""

import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve_app.config import SetupError


def prepare_home(home: Path) -> None:
    """Makes the data directory, readable by its owner only. Raises SetupError."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SetupError(f"the data directory {home} cannot be made ({error.strerror}); set TRITEXT_HOME") from None
    if not os.access(home, os.W_OK | os.X_OK):
        raise SetupError(f"the data directory {home} cannot be written to; set TRITEXT_HOME to another one")


def ensure_secret(path: Path) -> None:
    """Leaves a secret of 256 random bits in the file, unless it holds one."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))


def write_private(path: Path, text: str) -> None:
    """Writes the file whole or not at all; nobody else can read it at any time."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Holds the data directory. Raises SetupError where another service runs from it."""
    with (home / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"a service already runs from {home}; stop it, or set TRITEXT_HOME to another directory"
            ) from None
        yield


def make_runtime_dir(home: Path) -> Path:
    """A private directory with a short path for sockets and logs of a running service, one for each data directory.

    Ray and HAProxy keep Unix sockets there, whose paths may have about a hundred bytes. Raises SetupError.
    """
    digest = hashlib.sha256(f"{os.getuid()} {home.resolve()}".encode()).hexdigest()[:8]
    path = Path(f"/tmp/tritext-{digest}")  # noqa: S108  # checked below to be ours alone
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise SetupError(f"{path} exists and is not a directory of yours alone; remove it")
    return path
