"""The time left, by a clock of its own."""

import pytest

from slot_vllm.evaluation.answering import TimeLeft


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def many(count: int, limit: int = 1000) -> tuple[TimeLeft, Clock, list[str]]:
    clock = Clock()
    names = [f"r{i}" for i in range(count)]
    return TimeLeft(dict.fromkeys(names, limit), clock), clock, names


def test_nothing_is_known_before_one_is_finished() -> None:
    left, clock, names = many(3)
    assert left.seconds() is None
    left.add(names[0], 0)
    clock.now += 1
    left.add(names[0], 5)
    assert left.seconds() is None
    assert (left.running, left.tokens_per_second) == (1, 5)
    left.finish(names[0])
    assert left.seconds() == pytest.approx(2 * 5 / 5)


def test_what_running_ones_have_is_not_left() -> None:
    # As it was: 2 of 128 finished after 20 s gave 21 minutes, whatever the other 126 had.
    left, clock, names = many(128)
    for name in names:
        left.add(name, 0)
    clock.now += 20
    for name in names:
        left.add(name, 90)
    for name in names[:2]:
        left.add(name, 10)
        left.finish(name)
    tokens = 126 * 90 + 2 * 100
    by_rate = 126 * 10 / (tokens / 20)
    by_pace = 10 / (90 / 20)
    assert left.seconds() == pytest.approx(max(by_rate, by_pace))
    assert left.running == 126


def test_those_that_wait_are_expected_to_be_as_long_as_the_mean() -> None:
    left, clock, names = many(10)
    clock.now += 10
    for name, tokens in zip(names, (10, 30), strict=False):
        left.add(name, tokens)
        left.finish(name)
    assert left.seconds() == pytest.approx(8 * 20 / 4)


def test_no_answer_is_expected_to_exceed_its_limit() -> None:
    clock = Clock()
    left = TimeLeft({"long": 100, "short": 10}, clock)
    left.add("long", 0)
    clock.now += 10
    left.add("long", 100)
    left.finish("long")
    assert left.seconds() == pytest.approx(10 / 10)


@pytest.mark.parametrize(("has", "expected"), [(5, 20), (15, 40), (30, 40), (40, 100), (99, 100)])
def test_a_running_one_is_compared_with_those_that_are_longer(has: int, expected: int) -> None:
    left, clock, names = many(4, limit=100)
    for name, tokens in zip(names, (10, 10, 40), strict=False):
        left.add(name, tokens)
        left.finish(name)
    left.add(names[3], 0)
    clock.now += 10
    left.add(names[3], has)
    by_rate = (expected - has) / ((60 + has) / 10)
    by_pace = (expected - has) / (has / 10)
    assert left.seconds() == pytest.approx(max(by_rate, by_pace))


def test_the_last_one_goes_at_its_own_pace() -> None:
    # 127 have made the engine look fast; the one that is left makes 5 tokens per second.
    left, clock, names = many(128, limit=500)
    for name in names:
        left.add(name, 0)
    clock.now += 20
    for name in names:
        left.add(name, 100)
    for name in names[:-1]:
        left.finish(name)
    assert left.seconds() == pytest.approx(400 / 5)


def test_the_end() -> None:
    left, clock, names = many(2)
    clock.now += 1
    for name in names:
        left.add(name, 3)
        left.finish(name)
    assert left.seconds() == 0
    assert left.running == 0


def test_an_answer_without_a_token() -> None:
    left, clock, names = many(2)
    clock.now += 1
    left.finish(names[0])
    assert left.seconds() is None
    # It is finished, and tells nothing of one that has a token.
    left.add(names[1], 4)
    assert left.seconds() == pytest.approx(996 / 4)
