import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from slot_vllm.evaluation.command_line import exit_code

SWALLOWS = """
import multiprocessing, sys, time
from slot_vllm.evaluation.interruption import Interruption

if __name__ == "__main__":
    with Interruption(grace=0.5):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
        try:
            print(child.pid, flush=True)
            time.sleep(600)
        except KeyboardInterrupt:
            time.sleep(600)
"""


def _runs(pid: int) -> bool:
    # In a container the first process may never collect what has ended.
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    script = tmp_path / "swallows.py"
    script.write_text(SWALLOWS)
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "answers that are in are kept" in said
    deadline = time.monotonic() + 60
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def test_an_interruption_that_became_another_error(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise UnboundLocalError("tok") from None

    before = signal.getsignal(signal.SIGINT)
    assert exit_code(run) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_other_errors_stay_what_they_are() -> None:
    def run() -> None:
        raise UnboundLocalError("tok")

    with pytest.raises(UnboundLocalError):
        exit_code(run)
