"""What import-linter cannot see: imports that happen late. The other rules stand in pyproject.toml."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("serve_app.cli", ("ray", "torch", "transformers", "fastapi")),  # commands about keys answer at once
        ("serve_app.launcher", ("ray",)),  # Ray reads the environment when imported, and the launcher sets it
        ("serve_app.api", ("ray", "torch", "transformers", "sqlalchemy")),
    ],
)
def test_importing_a_module_leaves_heavy_packages_alone(module: str, absent: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(sorted(set(sys.modules) & {set(absent)!r}))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
