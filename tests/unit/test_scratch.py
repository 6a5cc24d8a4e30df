"""A worker's temporary directory lasts as long as the worker, and not much longer."""

import os
from pathlib import Path

from deployments.scratch import make_scratch


def test_what_a_dead_worker_left_is_removed_by_the_next_and_living_ones_keep_theirs(tmp_path: Path) -> None:
    dead, descriptor = make_scratch(tmp_path)
    (dead / "some" / "where").mkdir(parents=True)
    alive, kept = make_scratch(tmp_path)
    (tmp_path / "of-somebody-else").mkdir()
    assert dead.exists()
    os.close(descriptor)  # as when its process ends
    _, last = make_scratch(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    assert (tmp_path / "of-somebody-else").exists()
    os.close(kept)
    os.close(last)


def test_directory_is_its_owners_alone(tmp_path: Path) -> None:
    path, descriptor = make_scratch(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o700
    os.close(descriptor)
