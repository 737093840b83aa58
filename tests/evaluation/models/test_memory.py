"""What a model needs of memory is looked at before it is loaded."""

import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.models import memory
from tests.conftest import ROOT


def test_a_limit_of_the_process_counts() -> None:
    script = (
        "import resource; from slot_vllm.evaluation.models import memory;"
        "resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.RLIM_INFINITY));"
        "print(memory.available())"
    )
    made = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 0 < int(made.stdout) < 1 << 30
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] != 1 << 30


@pytest.mark.parametrize(
    ("dtype", "slot", "fits"),
    [
        ("auto", None, True),
        ("bfloat16", {"workspace_mb": 1}, True),
        ("bfloat16", {"workspace_mb": 2}, False),
        ("bfloat16", {}, False),  # the default, 512 MiB
        ("float32", None, False),
    ],
)
def test_weights_cache_and_workspace_of_an_engine(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    slot: dict[str, int] | None,
    fits: bool,
) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(memory, "available", lambda: 7_000_000)
    monkeypatch.setattr(memory, "_PROGRAM", 0)
    options: dict[str, Any] = {"model": str(tmp_path), "dtype": dtype}
    options |= {"kv_cache_memory_bytes": 1_500_000}
    if slot is not None:
        options["additional_config"] = {"slot": slot}
    if fits:
        memory.check_engine(options)
        return
    with pytest.raises(ConfigError, match=r"its weights, a KV cache of 0\.0 GB and loading"):
        memory.check_engine(options)


def test_what_a_run_needs_is_what_it_took() -> None:
    said = (ROOT / "logs/full/real_models.log").read_text(encoding="utf-8")
    small = re.search(
        r"--config configs/quickstart.yaml, then in bfloat16: peak resident (\S+) GB", said
    )
    large = re.search(r"the same with model=get:qwen2.5-coder-1.5b: peak resident (\S+) GB", said)
    run = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text(encoding="utf-8"))
    cache, workspace = run["engine"]["kv_cache_memory_bytes"], run["slot"]["workspace_mb"] << 20
    models = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    sizes = dict(re.findall(r"^\| `(\S+)` .* (\S+) GB \|$", models, re.M))
    for name, peak in (("smollm2-135m", small), ("qwen2.5-coder-1.5b", large)):
        assert peak is not None
        weights = int(1e9 * float(sizes[name]))
        needed = memory.needed(weights, cache, workspace) / 1e9
        assert needed == pytest.approx(float(peak[1]), abs=0.05)


def test_a_hubs_name_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 0)
    memory.check_engine({"model": "org/name"})


@pytest.mark.parametrize(("limit_file", "used_file", "parts", "reclaimable"), memory._LIMITS)
def test_a_limit_of_the_container_counts(
    limit_file: str,
    used_file: str,
    parts: str,
    reclaimable: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    without = memory.available()
    for file, value in ((limit_file, 5_000_000), (used_file, 2_000_000)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"{value}\n")
    assert memory.available() == 3_000_000 < without
    # Files that were read stay in memory until somebody needs it, as after a download.
    (tmp_path / parts).write_text(f"cache 1900000\n{reclaimable} 1500000\nactive_file 7\n")
    assert memory.available() == 4_500_000
    # What cannot be read counts as none.
    (tmp_path / parts).write_text("no count\n\n")
    assert memory.available() == 3_000_000
    (tmp_path / parts).unlink()
    (tmp_path / parts).mkdir()
    assert memory.available() == 3_000_000
