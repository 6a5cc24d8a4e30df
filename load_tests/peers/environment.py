"""An environment of a peer's own: a venv outside of the project's lock. Converted models of peers lie beside it."""

import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def bench_home() -> Path:
    """Where environments and converted models of peers lie: TRITEXT_BENCH_HOME, or ~/.cache/tritext-bench."""
    return Path(os.environ.get("TRITEXT_BENCH_HOME") or Path.home() / ".cache" / "tritext-bench")


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer's venv holds.

    `packages` come with all that they require; `trimmed` without those of their requirements that `left_out` names
    (which the peer does not need to generate text, and whose builds fit no CPU build of torch).
    """

    name: str
    packages: tuple[str, ...]
    trimmed: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()

    @property
    def directory(self) -> Path:
        return bench_home() / f"venv-{self.name}"

    @property
    def site_packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.directory / "lib" / version / "site-packages"

    def program(self, name: str) -> Path:
        return self.directory / "bin" / name

    def install(self, torch: str) -> None:
        """Makes the venv anew or brings it up to date, with this requirement of torch (its build is the machine's)."""
        venv.EnvBuilder(with_pip=True, symlinks=True).create(self.directory)
        if self.trimmed:
            self._pip("--no-deps", *self.trimmed)
        required = kept_requirements(self._requirements_of_trimmed(), self.left_out)
        constraints = self.directory / "constraints.txt"
        constraints.write_text(f"{torch}\n", encoding="utf-8")
        self._pip("--constraint", str(constraints), *self.packages, *required)

    def versions(self) -> dict[str, str]:
        """Of the packages that are named here, and of torch and transformers where they are installed."""
        named = {canonicalize_name(Requirement(text).name) for text in (*self.packages, *self.trimmed)}
        found: dict[str, str] = {
            canonicalize_name(one.metadata["Name"]): one.version
            for one in distributions(path=[str(self.site_packages)])
        }
        return {name: found[name] for name in sorted(named | {"torch", "transformers"}) if name in found}

    def _requirements_of_trimmed(self) -> list[str]:
        names = {canonicalize_name(Requirement(text).name) for text in self.trimmed}
        return [
            requirement
            for one in distributions(path=[str(self.site_packages)])
            if canonicalize_name(one.metadata["Name"]) in names
            for requirement in one.requires or []
        ]

    def _pip(self, *arguments: str) -> None:
        pip = [
            str(self.program("python")),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ]
        subprocess.run([*pip, *arguments], check=True)  # noqa: S603


def kept_requirements(requirements: Iterable[str], left_out: frozenset[str]) -> list[str]:
    """The requirements that hold here without any extra, and are not left out, each as pip takes it."""
    kept = []
    for text in requirements:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) in left_out:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            kept.append(str(requirement))
    return kept
