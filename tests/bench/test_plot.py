"""The plot and the table of ``optimize``'s files."""

import json
from pathlib import Path
from typing import Any

import pytest

from slot_vllm.bench.__main__ import main
from slot_vllm.bench.plot import curves, plot
from slot_vllm.bench.table import table


def file(directory: Path, tokens: int, **shape: int) -> Path:
    result: dict[str, Any] = {
        "benchmark": "optimize",
        "shape": {
            **{"hidden": 64, "vocabulary": 500, "tokens": tokens, "requests": 1, "steps": 5},
            **{"dtype": "bfloat16", "device": "cpu", "workspace_mb": 512, **shape},
        },
        "machine": {"cores": 2},
        "bare": {"seconds": 0.5},
        "variants": {
            name: {
                "seconds": seconds,
                "speedup": 4 / seconds,
                "gemm_multiple": seconds / 0.5,
                "peak_extra_bytes": 3 << 20,
                "largest_difference": error,
            }
            for name, seconds, error in (("published", 4.0, None), ("ours", tokens / 64, 0.00123))
        },
    }
    path = directory / f"{tokens}_{'_'.join(shape)}.json"
    path.write_text(json.dumps(result))
    return path


def test_curves_are_over_the_prompts_length(tmp_path: Path) -> None:
    found = curves([file(tmp_path, 128), file(tmp_path, 64)])
    assert found["speedup"]["ours"] == [(64, 4.0), (128, 2.0)]
    assert found["gemm_multiple"]["published"] == [(64, 8.0), (128, 8.0)]


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_files_give_the_same_picture(tmp_path: Path, suffix: str) -> None:
    files = [file(tmp_path, 64), file(tmp_path, 128)]
    for name in ("a", "b"):
        plot(files, tmp_path / "new" / f"{name}.{suffix}")
    picture = (tmp_path / "new" / f"a.{suffix}").read_bytes()
    assert picture == (tmp_path / "new" / f"b.{suffix}").read_bytes()


@pytest.mark.parametrize("other", [{"requests": 8}, {"hidden": 32}])
def test_files_that_belong_into_no_common_curve(tmp_path: Path, other: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"of one request|differ in more"):
        curves([file(tmp_path, 64), file(tmp_path, 128, **other)])


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, 64)
    assert main(["table", str(path)]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == (
        "| 2 CPU cores | 64 x 500 | 1 x 64 | 0.5 | 4 | 1 | 4.0 | 2.00 | 3 |  | 1.2e-03 |  "
        "| `64_.json` |"
    )
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"64_\.json: not written by"):
        table([path])
