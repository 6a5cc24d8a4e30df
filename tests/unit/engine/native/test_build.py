"""The kernels are compiled once, and a machine that cannot is told apart from a broken one."""

from pathlib import Path

import pytest

from deployments.engine.native import build
from deployments.engine.native.architecture import Unsupported


def test_a_second_load_needs_no_compiler(kernel_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.load_kernels(kernel_cache)
    monkeypatch.setenv("CXX", "no-such-compiler")

    assert build.load_kernels(kernel_cache).tritext_run


@pytest.mark.usefixtures("kernel_cache")
def test_without_a_compiler_the_kernels_are_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")

    with pytest.raises(Unsupported, match="compiler"):
        build.load_kernels(tmp_path)


@pytest.mark.usefixtures("kernel_cache")
def test_a_failing_compiler_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")

    with pytest.raises(Unsupported, match="do not compile"):
        build.load_kernels(tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_processor_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_processor_flags", lambda: frozenset({"sse2", "avx2"}))

    assert "avx512_vnni" in str(build.missing_on_this_machine())
    with pytest.raises(Unsupported, match="processor"):
        build.load_kernels(tmp_path)
