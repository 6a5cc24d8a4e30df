"""The operators' page names files that exist, in an order that works; every page's tables are whole."""

import re
from pathlib import Path

import pytest

from infra.generate import INFRA
from tests.unit.infra.files import PROJECT

PAGE = PROJECT / "docs/deployment.md"
TEXT = PAGE.read_text("utf-8")
PAGES = sorted((PROJECT / "docs").rglob("*.md"))


def test_links_lead_somewhere() -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", TEXT)]
    assert len(targets) > 3
    assert [target for target in targets if target and not (PAGE.parent / target).exists()] == []


def test_files_that_are_named_exist() -> None:
    named = set(re.findall(r"`([\w./-]+\.(?:yaml|py|sh|env))`", TEXT))
    found = {path.relative_to(INFRA).as_posix() for path in INFRA.rglob("*") if path.is_file()}
    endings = {
        "/".join(parts[-count:]) for parts in (path.split("/") for path in found) for count in range(1, len(parts) + 1)
    }
    assert {name for name in named if name not in endings and not (PROJECT / name).exists()} <= {"tritext.env"}


def test_every_folder_is_explained() -> None:
    folders = {path.name for path in INFRA.iterdir() if path.is_dir() and not path.name.startswith("__")}
    table = TEXT[TEXT.index("| in `infra/` |") :].partition("\n\n")[0]
    assert {folder for folder in folders if f"`{folder}/" not in table} == set()


def test_the_volume_of_models_is_made_before_it_is_filled_and_the_service_comes_after() -> None:
    steps = re.split(r"^\d+\. ", TEXT.partition("## Kubernetes\n")[2].partition("\n## ")[0], flags=re.MULTILINE)
    [filling] = [step for step in steps if re.search(r"\bfill\b", step, re.IGNORECASE)]
    assert "kubectl apply -f infra/kuberay/models.yaml\n" in filling
    [starting] = [step for step in steps if "kubectl apply -f infra/kuberay\n" in step]
    assert steps.index(filling) < steps.index(starting)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_row_of_a_table_is_below_its_head(page: Path) -> None:
    blocks = re.split(r"\n\s*\n", page.read_text("utf-8"))
    tables = [block.splitlines() for block in blocks if block.lstrip().startswith("|")]
    assert [lines[0] for lines in tables if len(lines) < 2 or not re.fullmatch(r"[|: -]+", lines[1].strip())] == []
