"""What vLLM prints tells which phase of its start begins."""

import logging
import re

import pytest

from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.phases import Phases

# As vLLM 0.32 prints them, the second with a compiled model on a CPU.
EAGER = """\
INFO [core.py:133] Initializing a V1 LLM engine
(EngineCore pid=7) INFO 11-28 20:52:06 [cpu_model_runner.py:68] Starting to load model m...
(EngineCore pid=7) INFO 11-28 20:52:07 [default_loader.py:501] Loading weights took 0.31 seconds
(EngineCore pid=7) INFO 11-28 20:52:08 [core.py:402] init engine took 0.20 s
"""
COMPILED = """\
(Worker_TP0 pid=7) INFO [cpu_model_runner.py:68] Starting to load model m...
(Worker_TP1 pid=8) INFO [cpu_model_runner.py:68] Starting to load model m...
(Worker_TP0 pid=7) INFO [default_loader.py:501] Loading weights took 0.31 seconds
(Worker_TP1 pid=8) INFO [default_loader.py:501] Loading weights took 0.32 seconds
(Worker_TP0 pid=7) INFO [cpu_model_runner.py:87] Warming up model for the compilation...
(Worker_TP0 pid=7) INFO [monitor.py:40] Starting torch.compile
(Worker_TP1 pid=8) INFO [cpu_model_runner.py:87] Warming up model for the compilation...
(Worker_TP0 pid=7) INFO [monitor.py:62] torch.compile took 20.12 s in total
(Worker_TP0 pid=7) INFO [cpu_model_runner.py:91] Warming up done.
"""


@pytest.mark.parametrize(
    ("printed", "phases"),
    [
        ("", ["starting"]),
        (EAGER, ["starting", "loading the weights", "warming up"]),
        (
            COMPILED,
            ["starting", "loading the weights", "warming up", "compiling", "warming up"],
        ),
    ],
)
def test_phases(printed: str, phases: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Phases("starting") as seen:
        for number, line in enumerate(printed.splitlines(), 1):
            seen.see(line)
            if "Starting to load" in line:
                # As it ends and the next begins, not at the end.
                first, second, third = caplog.messages
                assert (first, third) == ("starting ...", "loading the weights ..."), number
                assert second.startswith("starting: "), number
    seen.see("Starting torch.compile")
    said = [re.sub(r": \d+\.\d s$", "", message) for message in caplog.messages]
    assert said == [text for phase in phases for text in (f"{phase} ...", phase)]


def test_a_phase_that_failed_has_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(RunFailed), Phases("starting") as seen:
        seen.see("Starting to load model m...")
        raise RunFailed("no")
    said = [message.partition(":")[0] for message in caplog.messages]
    assert said == ["starting ...", "starting", "loading the weights ..."]
