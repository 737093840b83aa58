"""What check, apply and revert say and do to a folder with vLLM's files."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import vllm

from slot_vllm.engine.vllm_contract.release import TESTED, release_of
from tests.conftest import ROOT

VERSION = vllm.__version__.partition("+")[0]
PATCH = ROOT / f"patches/vllm-{VERSION}.patch"
RUNNER = "vllm/v1/worker/gpu_model_runner.py"
V2_RUNNER = "vllm/v1/worker/gpu/model_runner.py"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Only the files that the patch knows, and the one that says the version."""
    paths = re.findall(r"^--- a/(\S+)", PATCH.read_text(), re.M)
    for path in [*paths, "vllm/_version.py"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(vllm.__file__).parents[1] / path, tmp_path / path)
    return tmp_path


def run(command: str, target: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/patch_vllm.sh"), command, "--target", str(target)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def contents(target: Path) -> dict[str, bytes]:
    files = (path for path in target.rglob("*") if path.is_file())
    return {str(path.relative_to(target)): path.read_bytes() for path in files}


def test_apply_twice_and_revert_twice(target: Path) -> None:
    before = contents(target)
    code, said = run("check", target)
    assert code == 0 and "not applied, can be" in said
    code, said = run("apply", target)
    assert code == 0 and "applied; the originals are in" in said
    applied = contents(target)
    backup = "vllm/.slot_vllm_backup/"
    kept = {k.removeprefix(backup): v for k, v in applied.items() if k.startswith(backup)}
    assert kept == {k: v for k, v in before.items() if k in kept} and RUNNER in kept
    assert run("check", target)[1].endswith(": applied\n")
    code, said = run("apply", target)
    assert code == 0 and "applied already" in said
    assert contents(target) == applied
    code, said = run("revert", target)
    assert code == 0 and said.endswith(": reverted\n")
    assert contents(target) == before
    code, said = run("revert", target)
    assert code == 0 and said.endswith(": not applied\n")
    assert contents(target) == before


@pytest.mark.parametrize("command", ["check", "apply", "revert"])
@pytest.mark.parametrize("first", [None, "apply"])
def test_a_modified_file_is_refused(command: str, first: str | None, target: Path) -> None:
    if first is not None:
        assert run(first, target)[0] == 0
    # Far from every hunk: it would apply.
    (target / RUNNER).write_text((target / RUNNER).read_text() + "\n# mine\n")
    before = contents(target)
    code, said = run(command, target)
    assert code == 1 and f"error: neither as vLLM {VERSION} has them" in said
    assert RUNNER in said and V2_RUNNER not in said
    assert contents(target) == before


@pytest.mark.parametrize("backup", ["whole", "changed", "gone"])
def test_one_that_is_applied_in_part_is_refused_and_can_be_reverted(
    backup: str, target: Path
) -> None:
    """As after an interruption. What was changed is put back from the backup, or nothing is."""
    clean = contents(target)
    run("apply", target)
    (target / RUNNER).write_bytes(clean[RUNNER])
    kept = target / "vllm/.slot_vllm_backup"
    if backup == "changed":
        (kept / V2_RUNNER).write_text("x = 1\n")
    elif backup == "gone":
        shutil.rmtree(kept)
    before = contents(target)
    for command in ("check", "apply"):
        code, said = run(command, target)
        assert code == 1 and "applied in part" in said and "revert takes it out" in said
        assert (f"originals are in {kept}" in said) == (backup != "gone")
        assert contents(target) == before
    code, said = run("revert", target)
    if backup == "whole":
        assert code == 0 and said.endswith(": reverted\n")
        assert contents(target) == clean
    else:
        assert code == 1 and "is patched, and its original is not in" in said
        assert contents(target) == before


@pytest.mark.parametrize("first", ["apply", "revert"])
def test_without_the_command_patch(first: str, target: Path, tmp_path: Path) -> None:
    if first == "revert":
        assert run("apply", target)[0] == 0
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "sed", "awk", "stat", "cat", "sha1sum", "cut"):
        (tools / name).symlink_to(shutil.which(name) or name)
    before = contents(target)
    code, said = run(first, target, PATH=str(tools))
    assert code == 1 and "the command patch is not installed" in said
    assert contents(target) == before


@pytest.mark.parametrize("command", ["check", "apply", "revert"])
def test_another_version_is_refused(command: str, target: Path) -> None:
    version = target / "vllm/_version.py"
    version.write_text(version.read_text().replace(VERSION, "0.31.9"))
    before = contents(target)
    code, said = run(command, target)
    assert code == 1
    assert "error: no patch for vLLM 0.31.9" in said and "there is one for: 0.32.0 0.33.0" in said
    assert contents(target) == before


def test_no_vllm_there(tmp_path: Path) -> None:
    code, said = run("apply", tmp_path)
    assert code == 1 and "has no vllm/_version.py" in said


@pytest.mark.parametrize("arguments", [[], ["undo"], ["apply", "--target"], ["apply", "x"]])
def test_usage(arguments: list[str]) -> None:
    script = str(ROOT / "scripts/patch_vllm.sh")
    done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_every_tested_release_has_a_patch() -> None:
    names = [p.name for p in (ROOT / "patches").glob("*.patch")]
    releases = {release_of(name.removeprefix("vllm-").removesuffix(".patch")) for name in names}
    assert releases == set(TESTED)
