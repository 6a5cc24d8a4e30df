"""A small soak on a tiny model: what `make soak` does with ten thousand requests on the default one."""

from pathlib import Path

from load_tests.soak import Patience, random_patience, soak, soak_model, started
from tests.factories import make_tiny_model

NUM_REQUESTS, SEED = 300, 3


async def test_random_requests_with_cancels_leave_nothing_and_are_exact(tmp_path: Path, kernel_cache: Path) -> None:
    directory = make_tiny_model(tmp_path / "tiny")
    (tmp_path / "kernels").symlink_to(kernel_cache)
    # Two contexts: with up to 24 sequences at a time, most steps are short of blocks.
    model = soak_model(str(directory), num_threads=1, kv_cache_bytes=512 * 256)
    async with started(model, tmp_path) as node:
        stats = node.stats()
        result = await soak(node, vocab_size=384, num_requests=NUM_REQUESTS, seed=SEED)
    assert stats.num_blocks == 32
    assert result.ends["answered"] > 150
    # Whether the others that may leave do so before they have their answer is a matter of the machine's speed.
    patience = [random_patience(number, SEED) for number in range(NUM_REQUESTS)]
    num_at_once = patience.count(Patience(chunks=0)) + patience.count(Patience(seconds=0.0))
    assert result.ends["cancelled"] >= num_at_once > 20
    assert (result.num_repeated, result.num_different, result.left_over) == (60, 0, "")
