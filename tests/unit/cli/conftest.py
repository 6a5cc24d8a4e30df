"""Runs the command line in this process, over a database of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app import cli


class Result:
    """How a command ended, and what it wrote."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


Command = Callable[..., Result]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(
        """
applications:
  - name: tritext
    import_path: serve_app.app:build
    args: {graph: {models: [{id: test-model, source: /nowhere, aliases: [standard]}]}}
"""
    )
    return path


@pytest.fixture
def tritext(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str, config: Path = config) -> Result:
        monkeypatch.setattr("sys.argv", ["tritext", *arguments, "--config", str(config)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return Result(int(stopped.value.code or 0), captured.out, captured.err)

    return run
