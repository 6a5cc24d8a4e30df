"""The generator: known answers of Philox4x32-10, uniformity and independence over each of its three arguments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deployments.engine.sampling.uniforms import philox4x32, uniforms

NUM = 100_000


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    words = philox4x32(
        tuple(np.array([word], dtype=np.uint64) for word in counter),
        tuple(np.array([word], dtype=np.uint64) for word in key),
    )
    assert tuple(int(word[0]) for word in words) == expected


def test_the_numbers_of_a_seed_never_change():
    """The first two words of the known answer for zeros, so a stored seed gives the same text in every version."""
    assert uniforms([0], [0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def along(argument: str, start: int = 0, step: int = 1) -> np.ndarray:
    """Numbers that differ in one argument alone."""
    moving = [start + step * i for i in range(NUM)]
    fixed = [7] * NUM
    return uniforms(
        moving if argument == "seed" else fixed,
        moving if argument == "sequence" else fixed,
        moving if argument == "position" else fixed,
    )


STREAMS = {
    "seeds": ("seed", 0, 1),
    "negative seeds": ("seed", -NUM, 1),
    "seeds around 2**63": ("seed", 2**63 - NUM // 2, 1),
    "seeds that differ in high bits only": ("seed", 5, 2**40),
    "sequences": ("sequence", 0, 1),
    "positions": ("position", 0, 1),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS.keys())
def test_numbers_are_uniform_and_neighbours_independent(stream):
    numbers = along(*stream)
    assert numbers.min() >= 0.0
    assert numbers.max() < 1.0
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    for lag in (1, 2, 7):
        pairs, _, _ = np.histogram2d(numbers[:-lag], numbers[lag:], bins=16, range=[[0, 1], [0, 1]])
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-4


def test_the_low_bits_are_as_random_as_the_high_ones():
    mantissas = (along("position") * 2.0**53).astype(np.uint64)
    for bit in range(53):
        ones = int(((mantissas >> np.uint64(bit)) & np.uint64(1)).sum())
        assert abs(ones - NUM / 2) < 5 * np.sqrt(NUM) / 2


@pytest.mark.parametrize("pair", [("seed", "sequence"), ("seed", "position"), ("sequence", "position")])
def test_exchanging_two_arguments_gives_unrelated_numbers(pair):
    first, second = along(pair[0], start=8), along(pair[1], start=8)
    joint, _, _ = np.histogram2d(first, second, bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(joint.ravel()).pvalue > 1e-4


@pytest.mark.parametrize(("one", "other"), [(-1, 1), (-1, 2**63), (0, 2**32), (1, 2**63 + 1), (-(2**63), 0)])
def test_different_seeds_give_different_numbers(one, other):
    assert uniforms([one], [0], [0])[0] != uniforms([other], [0], [0])[0]


big = st.integers(-(2**63), 2**64 - 1)


@settings(deadline=None)
@given(st.lists(st.tuples(big, st.integers(0, 2**40), st.integers(0, 2**40)), min_size=1, max_size=8))
def test_a_number_does_not_depend_on_the_others_drawn_with_it(triples):
    together = uniforms(*zip(*triples, strict=True))
    alone = [uniforms([seed], [sequence], [position])[0] for seed, sequence, position in triples]
    assert together.tolist() == alone
