"""Prompts, requests, requirements of environments and the description of a machine."""

import pytest

from load_tests.machine import describe_processor
from load_tests.peers.environment import kept_requirements
from load_tests.prompts import numbered_prompts, prompts
from load_tests.traffic import Target


def test_prompts_of_another_number_share_no_beginning() -> None:
    one, other = numbered_prompts(3, 70), numbered_prompts(30, 70)
    assert len({*one, *other}) == 140
    assert one == numbered_prompts(3, 70)
    assert all(numbered.endswith(text) for numbered, text in zip(one, prompts(), strict=False))


def test_a_target_may_leave_fields_out_and_add_some() -> None:
    target = Target("http://x", "m", changes={"ignore_eos": None, "generation_config": "{}"})
    body = target.body("Hello", 5)
    assert "ignore_eos" not in body
    assert (body["generation_config"], body["prompt"], body["max_tokens"]) == ("{}", "Hello", 5)


@pytest.mark.parametrize(
    ("requirement", "kept"),
    [
        ("regex", ["regex"]),
        ("torchvision", []),
        ("TorchVision>=1; python_version > '3'", []),
        ("torch==2.13.0+cpu; python_version > '3'", ["torch==2.13.0+cpu"]),
        ("ray; extra == 'cluster'", []),
        ("winloop; sys_platform == 'no such'", []),
    ],
)
def test_requirements_that_hold_here_are_kept(requirement: str, kept: list[str]) -> None:
    assert kept_requirements([requirement], frozenset({"torchvision"})) == kept


def test_the_processor_is_described_by_what_decides_its_speed() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: Another\n"
    assert describe_processor(cpuinfo) == {"processor": "A CPU @ 2 GHz", "flags": ["avx2", "avx512_vnni"]}
