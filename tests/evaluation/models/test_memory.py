"""What a model needs of memory is looked at before it is loaded."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.models import memory


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
    ("dtype", "fits"), [("auto", True), ("bfloat16", True), ("float32", False)]
)
def test_weights_and_cache_of_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, fits: bool
) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(bytes(3_000_000))
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setattr(memory, "available", lambda: 5_000_000)
    options = {"model": str(tmp_path), "dtype": dtype, "kv_cache_memory_bytes": 1_500_000}
    if fits:
        memory.check_engine(options)
        return
    with pytest.raises(ConfigError, match=r"its weights and a KV cache of 0\.0 GB"):
        memory.check_engine(options)


def test_a_hubs_name_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 0)
    memory.check_engine({"model": "org/name"})


@pytest.mark.parametrize(("limit_file", "used_file"), memory._LIMITS)
def test_a_limit_of_the_container_counts(
    limit_file: str, used_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    without = memory.available()
    for file, value in ((limit_file, 5_000_000), (used_file, 2_000_000)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(f"{value}\n")
    assert memory.available() == 3_000_000 < without
