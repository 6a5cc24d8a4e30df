import multiprocessing
import threading
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from deployments.checkpoints.workspace import workspace


def test_it_is_gone_after_success_and_stays_after_failure(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError), workspace(target, "1") as work:
        (work / "half").write_text("done")
        raise RuntimeError
    with workspace(target, "2") as work:
        assert not list(work.iterdir())
    with workspace(target, "1") as work:
        assert (work / "half").read_text() == "done"
    assert not list(tmp_path.iterdir())


def test_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most_inside, lock = 0, 0, threading.Lock()
    barrier = threading.Barrier(8)

    def work() -> None:
        nonlocal inside, most_inside
        barrier.wait()
        for _ in range(20):
            with workspace(tmp_path / "target", "1") as directory:
                with lock:
                    inside += 1
                    most_inside = max(most_inside, inside)
                (directory / "file").touch(exist_ok=False)
                with lock:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_inside == 1
    assert not list(tmp_path.iterdir())


def hold(target: Path, held: Event, done: Event) -> None:
    with workspace(target, "1") as work:
        (work / "half").write_text("done")
        held.set()
        done.wait(60)


def test_a_killed_process_lets_go_and_leaves_its_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "target", held, done))
    process.start()
    assert held.wait(60)
    process.kill()
    process.join()
    with workspace(tmp_path / "target", "1") as work:
        assert (work / "half").read_text() == "done"
