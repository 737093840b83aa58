"""What tasks of lighteval need beyond its own installation, and where it comes from."""

import re
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from slot_vllm.evaluation.errors import ConfigError, one_line

# Tasks that split answers into sentences and tell their language, by the folder of their file.
_SPLIT_SENTENCES = {"ifeval", "ifbench"}


def installed(distribution: str) -> str | None:
    """Its version, if it is there."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def missing(error: Exception) -> str | None:
    """In words, what an import did not find and the extra that brings it; None for other errors.

    lighteval leaves some imports out where their package is not installed, and then fails by name.
    """
    if isinstance(error, NameError):
        name = error.name or ""
        extra = _extra(name)
        return _needs(name, extra) if extra else None
    if not isinstance(error, ImportError):
        return None
    named = error.name or next(iter(re.findall(r"`([\w.-]+)`", str(error))), None)
    if named is None:
        return one_line(error)
    package = named.split(".")[0]
    return _needs(package, _extra(package) or f"pip install {package}")


def prepare(folder: str) -> None:
    """For the tasks of this folder: the same answer gets the same score each time. Raises
    ConfigError if they need texts of NLTK that are not here."""
    if folder not in _SPLIT_SENTENCES:
        return
    import langdetect

    from slot_vllm.evaluation import sentences

    langdetect.DetectorFactory.seed = 0  # or it draws at random which language it finds

    if not sentences.there():
        raise ConfigError(
            "it needs NLTK's punkt_tab, which is in none of NLTK's directories (NLTK_DATA names "
            "one); `slot-vllm doctor --fix` brings it"
        )


def _needs(package: str, source: str) -> str:
    return f"it needs {package}, which is not installed; {source} brings it"


def _extra(package: str) -> str | None:
    """This project's extra that asks for the package, or else lighteval's."""
    for distribution in ("slot-vllm", "lighteval"):
        lines = requires(distribution) if installed(distribution) else None
        for requirement in map(Requirement, lines or []):
            found = re.search(r'extra == "([\w-]+)"', str(requirement.marker))
            if found and canonicalize_name(requirement.name) == canonicalize_name(package):
                return f"{distribution}[{found[1]}]"
    return None
