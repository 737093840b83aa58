"""The processor, as Linux describes it."""

from pathlib import Path

_INFORMATION = Path("/proc/cpuinfo")
# Those that decide how fast the products of a model are, and how they round.
_INSTRUCTION_SETS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def described() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, by key; nothing where there is no such file."""
    found: dict[str, str] = {}
    if _INFORMATION.is_file():
        for line in _INFORMATION.read_text().splitlines():
            key, _, value = line.partition(":")
            found.setdefault(key.strip(), value.strip())
    return found


def name() -> str | None:
    """Its model; None where the system does not tell."""
    return described().get("model name")


def instruction_sets() -> list[str]:
    """Of those that matter here, the ones that it has, by Linux's names."""
    flags = described().get("flags", "").split()
    return [each for each in _INSTRUCTION_SETS if each in flags]
