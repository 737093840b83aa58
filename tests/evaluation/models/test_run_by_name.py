"""A run on ``model: get:NAME``."""

import json
from pathlib import Path

import pytest

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.models.catalog import Model
from tests.evaluation.conftest import RunMain, WriteConfig


def test_the_model_is_made_and_the_results_keep_its_name(
    tiny: Model, write_config: WriteConfig, run_main: RunMain, tmp_path: Path
) -> None:
    engine = {"dtype": "float32", "max_model_len": 512, "enforce_eager": True}
    config = write_config(
        model="get:tiny", engine={**engine, "kv_cache_memory_bytes": 2**28}, inspect=False
    )
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["model"] == "get:tiny"
    assert (tmp_path / "cache/slot-vllm/models/tiny/config.json").exists()
    prompt = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])["prompt"]
    assert prompt.startswith("<|im_start|>")


def test_a_name_that_is_unknown(write_config: WriteConfig) -> None:
    config = configuration.load(write_config(model="get:smollm"))
    with pytest.raises(ConfigError, match="model: get:'smollm': no such model; allowed: smollm2"):
        configuration.check_paths(config)


def test_bad_data_is_told_before_the_download(
    tiny: Model, write_config: WriteConfig, run_main: RunMain, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"problem": "1 + 1?"}))
    config = write_config(model="get:tiny", tasks=[{"name": "aime24", "data": str(data)}])
    assert run_main("--config", config, "--output-dir", tmp_path / "out") == 2
    assert not (tmp_path / "cache").exists()
