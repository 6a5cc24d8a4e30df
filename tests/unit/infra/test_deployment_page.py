"""The operators' page names files that exist."""

import re

from infra.generate import INFRA
from tests.unit.infra.files import PROJECT

PAGE = PROJECT / "docs/deployment.md"
TEXT = PAGE.read_text("utf-8")


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
