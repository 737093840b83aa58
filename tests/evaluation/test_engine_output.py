"""What an engine prints goes to the log; if it does not start, to the terminal after all."""

import logging
import os
import subprocess
import sys
import time

import pytest

from slot_vllm.evaluation import engine_output
from slot_vllm.evaluation.errors import RunFailed


def test_an_engine_s_processes_print_into_the_log(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    with engine_output.logged():
        os.write(1, b"starting\n")
        child = subprocess.Popen(["sh", "-c", "sleep 0.2; echo later; echo worse >&2"])
    print("ours")
    child.wait()
    deadline = time.monotonic() + 120
    while "worse" not in caplog.messages and time.monotonic() < deadline:
        time.sleep(0.01)
    assert caplog.messages == ["starting", "later", "worse"]
    assert capfd.readouterr() == ("ours\n", "")


PHASES = """
import os, sys, time
from slot_vllm.evaluation import engine_output
from slot_vllm.evaluation.console import console

seen = []
with engine_output.logged(seen.append):
    os.write(1, b"vLLM's\\n")
    while not seen:
        time.sleep(0.01)
    console.print("ours")
console.print(f"then {seen}")
"""


def test_what_we_say_ourselves_is_seen_meanwhile() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PHASES], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("", 'ours\nthen ["vLLM\'s"]\n')


def test_an_engine_that_does_not_start_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunFailed), engine_output.logged():
        os.write(2, b"the cause\n")
        raise RunFailed("vLLM did not start")
    assert capfd.readouterr() == ("", "the cause\n")
