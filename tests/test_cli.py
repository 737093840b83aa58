"""``slot-vllm``: its commands, their help, and what they pass on."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import slot_vllm
from slot_vllm import cli
from slot_vllm.evaluation.__main__ import add_options
from slot_vllm.evaluation.command_line import exit_code
from tests.conftest import ROOT
from tests.engine.server import running
from tests.scripts.test_shell import run

COMMANDS = [
    *("eval", "serve", "bench", "init", "report", "inspect", "score", "compare-published"),
    *("rescore", "export", "get-model", "doctor"),
]


def _help(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    listed = re.findall(r"^    ([a-z-]+)(?: |$)", _help(capsys), re.MULTILINE)
    assert listed == COMMANDS
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"slot-vllm {slot_vllm.__version__}\n"
    assert cli.main(["evaluate"]) == 2
    assert "invalid choice: 'evaluate'" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_commands(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _help(capsys, command)
    examples = text.partition("\nexamples:\n")[2].splitlines()
    assert examples
    for example in examples:
        program, name, *rest = shlex.split(example, comments=True)
        assert (program, name) == ("slot-vllm", command)
        if command not in ("serve", "bench"):
            cli._parser().parse_args([name, *rest])
        for file in re.findall(r"configs/\S+", example):
            assert (ROOT / file).is_file()


def test_eval_is_the_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", "--config", "nowhere.yaml"]) == 2
    assert capsys.readouterr().err == "error: nowhere.yaml: no such file\n"
    assert cli.main(["eval", "--conf", "nowhere.yaml"]) == 2
    assert "--config" in capsys.readouterr().err


def test_serve_is_vllm_serve_with_the_extension(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []
    vllm = SimpleNamespace(main=lambda: started.append([*sys.argv]))
    monkeypatch.setitem(sys.modules, "vllm.entrypoints.cli.main", vllm)
    monkeypatch.setattr(sys, "argv", [])
    given = ["a model", "--port", "1", "--help=all", "--additional-config.slot.steps", "5"]
    assert cli.main(["serve", *given]) == 0
    assert started == [["vllm", "serve", *given, "--worker-extension", "slot_vllm"]]
    for other in ("--worker-extension-cls", "--worker_extension_cls=x.Y"):
        assert cli.main(["serve", "m", other, "x.Y"]) == 2
        assert "`vllm serve` takes another one" in capsys.readouterr().err
    assert len(started) == 1


# A process without lighteval, as one where the extra `eval` is not installed.
WITHOUT = """\
import sys

sys.modules["lighteval"] = None
from slot_vllm import cli

cli.main()
"""


@pytest.mark.parametrize(
    "command",
    [
        "eval --config configs/quickstart.yaml --output-dir out",
        "init MODEL gsm8k --output out.yaml",
        "inspect --config configs/quickstart.yaml --prompt x",
        "rescore {run}",
        "score --task published:gsm8k --data x --answers y",
    ],
)
def test_without_the_extra(command: str, tmp_path: Path) -> None:
    asked = command.format(run=ROOT / "logs/reference/quickstart").split()
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *asked],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last == "error: it needs lighteval, which is not installed; slot-vllm[eval] brings it"


def test_a_module_of_our_own_that_is_missing_is_our_fault() -> None:
    def run() -> None:
        raise ModuleNotFoundError("No module named 'slot_vllm.x'", name="slot_vllm.x")

    with pytest.raises(ModuleNotFoundError):
        exit_code(run)


def test_a_module_of_another_that_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def run() -> None:
        raise ModuleNotFoundError("No module named 'slot_vllm_tasks'", name="slot_vllm_tasks")

    assert exit_code(run) == 1
    assert "it needs slot_vllm_tasks, which is not installed" in capsys.readouterr().err


def test_bench_is_the_benchmarks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["bench", "table"])
    assert end.value.code == 2
    assert "usage: slot-vllm bench table" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["--config", "x.yaml", "--help"]])
def test_help_of_the_main_job_sets_up_nothing(asked: list[str], tmp_path: Path) -> None:
    cat = shutil.which("cat")
    assert cat
    (tmp_path / "cat").symlink_to(cat)
    code, output, errors = run(ROOT / "run_vllm.sh", tmp_path, *asked)
    assert (code, errors) == (0, "")
    parser = argparse.ArgumentParser(prog="x")
    add_options(parser)
    for action in parser._actions:
        assert all(option in output for option in action.option_strings)
        assert action.default is argparse.SUPPRESS or str(action.help) in output


def test_serving(tiny_model: str, tmp_path: Path) -> None:
    """A real server, as a user starts it."""
    command: list[Any] = [sys.executable, "-m", "slot_vllm.cli", "serve", tiny_model]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(1 << 26), "--additional-config.slot.steps", "2"]
    command += ["--additional-config.slot.workspace_mb", "16"]
    environment = {"VLLM_SERVER_DEV_MODE": "1"}
    with running(command, tmp_path / "log", environment) as server:
        server.client.completions.create(model="tiny", prompt=[1, 2, 3, 4], max_tokens=2)
        assert server.stats()["optimized"] == 1
