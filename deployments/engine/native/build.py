"""Compiles the kernels once for this machine's processor and compiler, into a cache. Knows nothing of models."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from deployments.engine.native.architecture import Unsupported

SOURCES = Path(__file__).with_name("kernels")

_REQUIRED = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "f16c", "fma"})
# -ffp-contract=off: products are fused into sums only where the source says so, or results would depend on inlining.
# The warnings that are off come from GCC 12's own intrinsics.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-ffp-contract=off", "-mtune=icelake-server"),
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mf16c", "-mfma"),
    *("-Wall", "-Wextra", "-Wno-maybe-uninitialized", "-Wno-uninitialized"),
)
_TIMEOUT_S = 300


def missing_on_this_machine() -> str | None:
    """What keeps this machine from running the kernels; None if nothing does."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the kernels are for Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    missing = sorted(_REQUIRED - _processor_flags())
    if missing:
        return f"the processor has no {', '.join(missing)}"
    return None


def is_compiled(cache: Path) -> bool:
    """Whether the cache holds these sources, compiled."""
    return _library(cache).is_file()


def compiled_kernels(cache: Path) -> Path:
    """The library of the kernels; compiles them (ten seconds) where the cache has none of these sources.

    Raises Unsupported when this machine cannot run or compile them.
    """
    reason = missing_on_this_machine()
    if reason is not None:
        raise Unsupported(reason)
    library = _library(cache)
    if not library.is_file():
        _compile(library)
    return library


def load_kernels(cache: Path) -> ctypes.CDLL:
    """The kernels, loaded into this process. Raises what `compiled_kernels` raises."""
    library = compiled_kernels(cache)
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise Unsupported(f"the compiled kernels cannot be loaded: {error}") from error


def _library(cache: Path) -> Path:
    return cache / f"kernels-{_key()}.so"


def _compile(library: Path) -> None:
    """Writes the library in one piece, so that several processes may do so at once."""
    compiler = shutil.which(os.environ.get("CXX") or "g++")
    if compiler is None:
        raise Unsupported("the kernels are not compiled yet and no C++ compiler (g++) is installed")
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
            output = Path(scratch) / library.name
            command = [compiler, *_FLAGS, "-o", str(output), *map(str, sorted(SOURCES.glob("*.cpp")))]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)  # noqa: S603
            output.replace(library)
    except subprocess.CalledProcessError as error:
        raise Unsupported(f"the kernels do not compile: {error.stderr.strip()[-2000:]}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"the kernels cannot be compiled: {error}") from error


def _processor_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def _key() -> str:
    """Changes with the sources and the way they are compiled."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for file in sorted(SOURCES.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
