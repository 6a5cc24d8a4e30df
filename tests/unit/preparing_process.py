"""What a process does that prepares a directory beside another one. Imports little, as starting it is waited for."""

from multiprocessing.synchronize import Event
from pathlib import Path

from deployments.model_preparation.cache import prepared


def prepare_until_another_waits(root: Path, is_another_waiting: Event) -> None:
    def make(directory: Path) -> None:
        with (root / "makers").open("a", encoding="utf-8") as stream:
            stream.write("x")
        if not is_another_waiting.wait(30):
            raise TimeoutError
        (directory / "file").write_text("content", encoding="utf-8")

    def report(message: str) -> None:
        if "waiting for another process" in message:
            is_another_waiting.set()

    prepared(root / "model", make, report=report)
    if (root / "model" / "file").read_text(encoding="utf-8") != "content":
        raise SystemExit(1)
