"""The parts of a start from zero, read from the logs of Ray Serve."""

from datetime import datetime

import pytest

from load_tests.wake_speed import parts

CONTROLLER = """\
INFO 2026-11-28 20:03:27,190 controller 7361 -- Upscaling Deployment(name='Generator-m', app='tritext') from 0 to 1.
INFO 2026-11-28 20:03:27,450 controller 7361 -- Starting Replica(id='a', deployment='Generator-m', app='tritext').
INFO 2026-11-28 20:03:30,551 controller 7361 -- Replica(id='a', deployment='Generator-m') started successfully on 'n'.
INFO 2026-11-28 20:04:27,000 controller 7361 -- Upscaling Deployment(name='Generator-m', app='tritext') from 0 to 1.
INFO 2026-11-28 20:04:27,250 controller 7361 -- Starting Replica(id='b', deployment='Generator-m', app='tritext').
INFO 2026-11-28 20:04:30,500 controller 7361 -- Replica(id='b', deployment='Generator-m') started successfully on 'n'.
"""
REPLICA = """\
INFO 2026-11-28 20:04:28,500 tritext_Generator-m b -- Started initializing replica.
INFO 2026-11-28 20:04:30,100 tritext_Generator-m b -- the model m is loaded: imports 1.10 s, tokenizer 0.20 s
INFO 2026-11-28 20:04:30,150 tritext_Generator-m b -- Finished initializing replica.
"""
BEGAN_AT = datetime(2026, 11, 28, 20, 4, 26, 500_000).timestamp()


def test_the_parts_are_those_of_this_request_and_sum_up_to_its_time() -> None:
    found = parts(CONTROLLER, REPLICA, BEGAN_AT, BEGAN_AT + 4.2)
    assert list(found.values()) == pytest.approx([0.5, 0.25, 1.25, 1.1, 0.2, 0.35, 0.35, 0.2])
    assert sum(found.values()) == pytest.approx(4.2)


def test_a_log_without_this_start_is_told() -> None:
    with pytest.raises(LookupError):
        parts(CONTROLLER, "", BEGAN_AT, BEGAN_AT + 4.2)
