"""The closed loop over an engine that goes on by steps."""

from load_tests.worker_loop import generate, prefill


class _FakeLoop:
    """Gives every request a token at each step, and remembers how many were in work at once."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.most_at_once = 0
        self.prompts: list[list[int]] = []

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def add(self, key: int, token_ids: list[int], max_tokens: int) -> None:
        self.prompts.append(token_ids)
        self.left[key] = max_tokens
        self.most_at_once = max(self.most_at_once, len(self.left))

    def step(self) -> dict[int, tuple[int, bool]]:
        self.left = {key: left - 1 for key, left in self.left.items()}
        arrived = {key: (1, left == 0) for key, left in self.left.items()}
        self.left = {key: left for key, left in self.left.items() if left}
        return arrived


def test_all_prompts_are_answered_in_full_with_so_many_at_once() -> None:
    loop = _FakeLoop()
    wall_s, samples = generate(loop, ["a", "b", "c", "d", "e"], concurrency=2, max_tokens=3)
    assert [num_tokens for *_, num_tokens in samples] == [3] * 5
    assert loop.most_at_once == 2
    assert loop.prompts == [[byte] for byte in b"abcde"]
    assert all(0 <= sent <= first <= last <= wall_s for sent, first, last, _ in samples)


def test_prefill_drops_its_first_prompt_and_repeats_no_beginning() -> None:
    loop = _FakeLoop()
    assert len(prefill(loop, 64, 3)) == 3
    assert len(prefill(loop, 256, 3)) == 3
    assert [len(prompt) for prompt in loop.prompts] == [64] * 4 + [256] * 4
    assert len({prompt[0] for prompt in loop.prompts}) == 8
