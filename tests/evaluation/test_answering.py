"""What a run says while it answers, on a terminal and elsewhere."""

import io
import itertools
from collections.abc import Callable

import pytest
from rich.console import Console

from slot_vllm.evaluation import progress
from slot_vllm.evaluation.answering import Answering
from slot_vllm.evaluation.generation import Request
from slot_vllm.evaluation.progress import Stage


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The lines, of which none waits for its time."""
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, width=200))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    return lambda: file.getvalue().splitlines()


def requests(count: int) -> list[Request]:
    sampling = {"n": 2, "max_tokens": 50}
    return [Request(f"r{i}", [1, 2], sampling, "text") for i in range(count)]


def test_running_and_finished_are_shown(said: Callable[[], list[str]]) -> None:
    with Answering("gsm8k", requests(3), done=4) as shown:
        shown.add_tokens("r0", 0)
        shown.add_tokens("r1", 7)
        shown.finish("r1")
        shown.add_tokens("r0", 7)
        shown.finish("r0")
        shown.add_tokens("r2", 7)
        shown.finish("r2")
    lines = said()
    assert lines[0].startswith("gsm8k: 4/7 finished, 1 running, ")
    assert lines[0].endswith(" tok/s, left: ?")
    assert lines[1].startswith("gsm8k: 4/7 finished, 2 running, ")
    assert lines[2].startswith("gsm8k: 5/7 finished, 1 running, ")
    assert lines[2].endswith(" s") and "left: " in lines[2]
    assert lines[-1].startswith("gsm8k: 7/7 finished, ")
    assert "left" not in lines[-1] and "running" not in lines[-1]


def test_a_line_waits_for_its_time_but_the_last_one_does_not(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 1e6)
    with Answering("gsm8k", requests(2)) as shown:
        for name in ("r0", "r1"):
            shown.add_tokens(name, 5)
            shown.finish(name)
    (line,) = said()
    assert line.startswith("gsm8k: 2/2 finished, ")


def test_a_terminal_has_the_same_words_beside_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = Console(file=file, width=200, force_terminal=True)
    monkeypatch.setattr(progress, "console", terminal)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_UPDATES", -1.0)
    with Answering("gsm8k", requests(2)) as shown:
        shown.add_tokens("r0", 5)
        shown.add_tokens("r1", 5)
        shown.finish("r0")
    assert "1/2 finished, 1 running, " in file.getvalue()


def test_a_stage_shows_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bursts further apart than what rich remembers of the pace."""
    file, clock = io.StringIO(), itertools.count(0, 60)
    now = [next(clock)]
    timed = Console(file=file, width=200, get_time=lambda: now[0])
    monkeypatch.setattr(progress, "console", timed)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    with Stage("download") as stage:
        for burst in ((0.125, 0.25, 0.25), (0.375, 0.5), (0.625, 0.75), (1.0,)):
            now[0] = next(clock)
            for share in burst:
                stage.reach(share)
    assert file.getvalue().splitlines() == [
        "download: 12%, left: 420 s",
        "download: 25%, left: 180 s",
        "download: 38%, left: 200 s",
        "download: 50%, left: 120 s",
        "download: 62%, left: 108 s",
        "download: 75%, left: 60 s",
        "download: 100% in 240.0 s",
    ]


def test_a_stage_of_one_step(said: Callable[[], list[str]]) -> None:
    with Stage("prompts") as stage:
        stage.reach(1.0)
    assert [line.startswith("prompts: 100% in ") for line in said()] == [True]
