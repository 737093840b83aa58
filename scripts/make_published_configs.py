"""Write configs/published: one run per model and task of logs/published_results.csv."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from slot_vllm.evaluation import published_table
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.published_table import PublishedRun

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "configs" / "published"

# The published settings; configs/aime24.yaml and its like have the same.
MAX_MODEL_LEN = 32768
GPU_MEMORY_UTILIZATION = 0.85

SCHEMA = "# yaml-language-server: $schema=../schema.json\n"

# Models are spread over as few GPUs of this size as hold the weights and these answers of full
# length at once; with fewer answers most GPU time would go into reading the weights.
GPU_GB = 80
ANSWERS_AT_ONCE = 4

HEAD_DIM = 128
BYTES = 2
TASKS = {"aime24": "AIME 2024", "math_500": "MATH-500", "gpqa:diamond": "GPQA diamond"}


@dataclass(frozen=True)
class Model:
    """A model as its config.json on the hub describes it. ``context``: positions."""

    hub: str
    billions: float
    layers: int
    kv_heads: int
    context: int = 131072

    @property
    def max_model_len(self) -> int:
        return min(MAX_MODEL_LEN, self.context)

    @property
    def weights_gb(self) -> float:
        """In bf16."""
        return self.billions * BYTES

    @property
    def answer_gb(self) -> float:
        """Keys and values of an answer of full length."""
        return self.max_model_len * 2 * self.layers * self.kv_heads * HEAD_DIM * BYTES / 1e9

    @property
    def gpus(self) -> int:
        needed = self.weights_gb + ANSWERS_AT_ONCE * self.answer_gb
        return next(n for n in (1, 2, 4, 8) if n * GPU_GB * GPU_MEMORY_UTILIZATION > needed)


# By the names in the table.
MODELS = {
    "DeepSeek-R1-Distill-Qwen-1.5B": Model(
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 1.78, 28, 2
    ),
    "DeepSeek-R1-Distill-Qwen-7B": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 7.62, 28, 4),
    "DeepSeek-R1-Distill-Qwen-14B": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", 14.77, 48, 8),
    "DeepSeek-R1-Distill-Qwen-32B": Model("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", 32.76, 64, 8),
    "DeepSeek-R1-Distill-Llama-8B": Model("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8.03, 32, 8),
    "DeepSeek-R1-Distill-Llama-70B": Model(
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", 70.55, 80, 8
    ),
    "Llama-3.3-70B-Instruct": Model("meta-llama/Llama-3.3-70B-Instruct", 70.55, 80, 8),
    # The hub has dropped the "Meta-" of the name that the table spells.
    "Meta-Llama-3.1-8B-Instruct": Model("meta-llama/Llama-3.1-8B-Instruct", 8.03, 32, 8),
    "Qwen2.5-14B": Model("Qwen/Qwen2.5-14B", 14.77, 48, 8),
    "Qwen2.5-32B": Model("Qwen/Qwen2.5-32B", 32.76, 64, 8),
    "Qwen2.5-Math-1.5B": Model("Qwen/Qwen2.5-Math-1.5B", 1.54, 28, 2, context=4096),
    "Qwen2.5-Math-7B": Model("Qwen/Qwen2.5-Math-7B", 7.62, 28, 4, context=4096),
}


def configs(runs: Sequence[PublishedRun]) -> dict[str, str]:
    """The files by name. Raises ConfigError for a model that MODELS does not have."""
    pairs: dict[tuple[str, str], list[PublishedRun]] = defaultdict(list)
    for run in runs:
        if run.model not in MODELS:
            raise ConfigError(f"model={run.model!r}: add it to MODELS; there are: {[*MODELS]}")
        pairs[run.task, run.model].append(run)
    written = {}
    for (task, name), of_pair in pairs.items():
        stem = f"{task.replace(':', '_')}-{name}"
        written[f"{stem}.yaml"] = _config(stem, task, name, of_pair)
    return written


def _config(stem: str, task: str, name: str, runs: Sequence[PublishedRun]) -> str:
    model = MODELS[name]
    comments = "".join(f"# {line}".rstrip() + "\n" for line in _heading(stem, task, name, runs))
    return f"""{SCHEMA}{comments}name: {stem}
model: {model.hub}
published_model: {name}
engine:
  dtype: bfloat16
  max_model_len: {model.max_model_len}
  gpu_memory_utilization: {GPU_MEMORY_UTILIZATION}
  tensor_parallel_size: {model.gpus}
generation:
  temperature: 0.6
  top_p: 0.95
  max_new_tokens: {model.max_model_len}
  seed: 0
tasks:
  - name: published:{task}
arms:
  - name: baseline
    steps: 0
{_arms([run for run in runs if run.steps])}"""


def _arms(runs: Sequence[PublishedRun]) -> str:
    """``slot``; where several settings are published, each by its own name."""
    text = ""
    for run in runs:
        name = "slot" if len(runs) == 1 else f"slot-{run.steps}-{run.lr:g}"
        text += f"  - name: {name}\n    steps: {run.steps}\n    lr: {run.lr!r}\n"
    return text


def _heading(stem: str, task: str, name: str, runs: Sequence[PublishedRun]) -> list[str]:
    model = MODELS[name]
    lines = [
        "Generated from logs/published_results.csv by `python scripts/make_published_configs.py`.",
        f"The published runs of {name} on {TASKS[task]}, accuracy and standard error:",
    ]
    for run in sorted(runs, key=lambda run: run.steps > 0):
        setting = f"SLOT with steps {run.steps} and lr {run.lr:g}" if run.steps else "without SLOT"
        lines.append(f"  {run.accuracy:.4f} ± {run.stderr:.4f}  {setting}")
    if all(run.steps for run in runs):
        lines.append("  none is published without SLOT; the baseline here has nothing beside it")
    several = "s" if model.gpus > 1 else ""
    lines += [
        "Beside them: `slot-vllm compare-published` with this run's results.json.",
        f"{model.gpus} GPU{several} of {GPU_GB} GB: {model.weights_gb:.1f} GB of weights in bf16,",
        f"and {ANSWERS_AT_ONCE} answers of {model.max_model_len} tokens at once with "
        f"{model.answer_gb:.1f} GB of KV cache each.",
    ]
    if model.gpus > 1:
        lines.append("The published run had 8 (docs/scaling.md: SLOT under tensor parallelism).")
    if model.max_model_len < MAX_MODEL_LEN:
        lines.append(f"Prompt and answer share the model's {model.context} positions.")
    lines.append("`model` takes a directory, and `data` under the task a file or directory.")
    gated = ["model"] if model.hub.startswith("meta-llama/") else []
    gated += ["dataset"] if task == "gpqa:diamond" else []
    if gated:
        lines.append(f"Gated on the hub, accept the terms there first: {' and '.join(gated)}.")
    return lines


def differences(files: Mapping[str, str], directory: Path) -> list[str]:
    """What in the directory is not as it would be written."""
    there = {path.name: path.read_text(encoding="utf-8") for path in directory.glob("*.yaml")}
    names = sorted({*files, *there})
    return [name for name in names if files.get(name) != there.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    parser.add_argument("--output", type=Path, default=PUBLISHED, help="default: configs/published")
    arguments = parser.parse_args()
    files = configs(published_table.read())
    if not arguments.check:
        arguments.output.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (arguments.output / name).write_text(text, encoding="utf-8")
    different = differences(files, arguments.output)
    if different:
        sys.exit(f"not as the table says: {', '.join(different)}")
    print(f"{arguments.output}: {len(files)} runs")


if __name__ == "__main__":
    main()
