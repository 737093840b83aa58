import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from slot_vllm.evaluation.command_line import exit_code
from slot_vllm.evaluation.interruption import Interruption
from tests.conftest import ROOT

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


def test_at_once_ends_children_and_tells_the_one_around_it() -> None:
    context = multiprocessing.get_context("fork")
    with pytest.raises(KeyboardInterrupt), Interruption() as around:
        child = context.Process(target=time.sleep, args=(600,))
        child.start()
        with Interruption(at_once=True) as inner:
            signal.raise_signal(signal.SIGINT)
    assert around.happened and inner.happened
    child.join(60)
    assert child.exitcode == -signal.SIGKILL


def test_ctrl_c_while_the_model_is_loaded(tmp_path: Path) -> None:
    """Nobody waits for an engine that does not answer: its process is stopped here."""
    command = [sys.executable, "-m", "slot_vllm.evaluation", "--output-dir", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--config", "tests/evaluation/demo.yaml"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
        start_new_session=True,
    )
    log = tmp_path / "out" / "run.log"
    deadline = time.monotonic() + 600
    children: list[psutil.Process] = []
    try:
        while not log.exists() or "Starting to load model" not in log.read_text():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        children = psutil.Process(process.pid).children(recursive=True)
        for child in children:
            child.suspend()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
    finally:
        for one in [process, *children]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                one.kill()
    assert process.returncode == 130, said
    # As soon as it could, not after the seconds that answers are waited for.
    assert said.endswith("interrupted\n") or "within 1 s was killed" in said
    assert "Traceback" not in said
    assert said.startswith(f"log: {log}\n")
    assert "\nstarting its processes: " in said
    assert "vLLM is up" not in log.read_text()
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_other_errors_stay_what_they_are() -> None:
    def run() -> None:
        raise UnboundLocalError("tok")

    with pytest.raises(UnboundLocalError):
        exit_code(run)
