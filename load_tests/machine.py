"""Describes the machine and the state of the source tree that figures were taken with."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

_TELLING_FLAGS = (
    "avx2",
    "f16c",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
"""The processor's abilities that decide which kernels run."""


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """JSON of what matters for the figures; what cannot be found out is left out."""
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    if cpuinfo.is_file():
        found |= describe_processor(cpuinfo.read_text(encoding="utf-8"))
    commit = _commit()
    return found | ({"commit": commit} if commit else {})


def describe_processor(cpuinfo: str) -> dict[str, Any]:
    """Model, cache and telling flags of the first processor in the text of /proc/cpuinfo."""
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            values.setdefault(name.strip(), value.strip())
    found: dict[str, Any] = {
        ours: values[theirs]
        for ours, theirs in (("processor", "model name"), ("cache", "cache size"))
        if theirs in values
    }
    flags = values.get("flags", "").split()
    return found | {"flags": [flag for flag in _TELLING_FLAGS if flag in flags]}


def _commit() -> str:
    """The commit, with a + where files under version control differ from it; nothing without git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
