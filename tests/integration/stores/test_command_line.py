"""The command line over PostgreSQL: refused before the schema is there, then everything works."""

from pathlib import Path

import pytest

from serve_app import cli
from serve_app.stores import schema
from tests.databases import PostgreSQLServer

CONFIG = """
applications:
  - name: tritext
    import_path: serve_app.app:build
    args:
      database_url: {url}
      graph: {{models: [{{id: test-model, source: /nowhere}}]}}
"""


def test_postgresql_by_changing_one_url(
    postgresql_server: PostgreSQLServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG.format(url=postgresql_server.url_of(postgresql_server.create_database())))

    def tritext(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["tritext", *arguments, "--config", str(config)])
        with pytest.raises(SystemExit):
            cli.main()
        captured = capsys.readouterr()
        return captured.out + captured.err

    assert "tritext database migrate" in tritext("keys", "create")
    assert f"{schema.VERSION} now" in tritext("database", "migrate")
    assert f"{schema.VERSION} already" in tritext("database", "migrate")
    assert "tt_" in tritext("keys", "create")
    assert "default" in tritext("keys", "list")
    assert "key.create" in tritext("audit")
