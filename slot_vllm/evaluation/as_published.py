"""What sets an arm of a run apart from the published runs: its task's definition, its decoding, its
model as the engine loads it, and its settings of SLOT."""

from collections.abc import Mapping
from typing import Any

from slot_vllm.evaluation import benchmarks, published_table
from slot_vllm.evaluation.record import Arm, Result, RunRecord
from slot_vllm.evaluation.task_definition import prompt_and_scorers
from slot_vllm.params import SlotParams

# What a published run may have been: the paper's method, or what the published vLLM code sets.
PRESETS = ("paper", "paper-vllm")
# Both are published: delta added in float32 or, as that code does, in the model's dtype.
_FREE = "rounding"

# Of vLLM: how fast and on what an engine answers, and what it logs. Of any other option only the
# values below, and those that ask for nothing, leave the model and its answers as published.
_SPEED = {
    *("api_server_count", "async_scheduling", "attention_backend", "attention_config"),
    *("block_size", "compilation_config", "cpu_offload_gb", "cudagraph_capture_sizes"),
    *("data_parallel_backend", "data_parallel_size", "data_parallel_size_local"),
    *("disable_cascade_attn", "disable_custom_all_reduce", "disable_log_stats"),
    *("distributed_executor_backend", "download_dir", "enable_chunked_prefill"),
    *("enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "hf_token"),
    *("kv_cache_memory_bytes", "long_prefill_token_threshold", "max_cudagraph_capture_size"),
    *("max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers"),
    *("num_gpu_blocks_override", "pipeline_parallel_size", "safetensors_load_strategy"),
    *("scheduler_cls", "scheduling_policy", "seed", "served_model_name", "swap_space"),
    *("tensor_parallel_size", "trust_remote_code", "use_tqdm_on_load"),
    "max_model_len",  # a limit on answers, which is looked at as such
}
_AS_PUBLISHED: dict[str, tuple[Any, ...]] = {
    "dtype": ("bfloat16",),
    "kv_cache_dtype": ("bfloat16",),
    "load_format": ("hf", "safetensors", "fastsafetensors", "pt", "runai_streamer"),
    "model_impl": ("vllm",),
    "revision": ("main",),
    "tokenizer_revision": ("main",),
    "runner": ("generate",),
    "convert": ("none",),
}
_NOTHING: tuple[Any, ...] = (None, False, "", "auto", {}, [])


def other_definition(run: RunRecord, task: str) -> list[str]:
    """How the task that the run asked and scored differs from today's of the same name."""
    recorded = run.tasks.get(task)
    if recorded is None:
        return ["the run does not say what its task was made of"]
    if recorded.answers > 1:  # its metrics have other names; the number is a difference itself
        return []
    today = next(one for one in benchmarks.TASKS_TABLE if one.name == task)
    prompt, metrics = prompt_and_scorers(today.prompt_function, today.metrics)
    asked = f"prompt {recorded.prompt} (theirs {prompt})"
    return [
        *([asked] if recorded.prompt != prompt else []),
        *(
            f"metric {name} by {recorded.metrics.get(name)} (theirs {scorer}; `slot-vllm rescore` "
            "scores the answers so)"
            for name, scorer in metrics.items()
            if recorded.metrics.get(name) != scorer
        ),
        *(f"metric {name} (theirs none)" for name in recorded.metrics.keys() - metrics.keys()),
    ]


def other_decoding(run: RunRecord, task: str, context: int) -> list[str]:
    """context: positions of the published run's model, as far as they limit an answer."""
    generation, recorded = run.config.generation, run.tasks.get(task)
    limit = generation.max_new_tokens or (recorded.token_limit if recorded else None)
    here = {
        "backend": (run.config.backend, "vllm"),
        "temperature": (generation.temperature, published_table.TEMPERATURE),
        "top_p": (generation.top_p, published_table.TOP_P),
        "top_k": (generation.top_k, 0),
        "min_p": (generation.min_p, 0.0),
        "repetition_penalty": (generation.repetition_penalty, 1.0),
        "stop": (generation.stop, []),
        "chat_template": (run.config.chat_template is not False, True),
        "examples": (len(run.config.examples), 0),
        "system_prompt": (run.config.system_prompt or run.config.system_prompt_file, None),
        "answers per problem": (recorded.answers if recorded else 1, 1),
    }
    differ = [f"{key} {a!r} (theirs {b!r})" for key, (a, b) in here.items() if a != b]
    # What a model's context does not hold is no limit of ours.
    tokens = min(published_table.NEW_TOKENS, context)
    if limit not in (tokens, published_table.NEW_TOKENS):
        differ.append(f"max_new_tokens {limit} (theirs {published_table.NEW_TOKENS})")
    if (run.max_model_len or tokens) < tokens:
        differ.append(f"engine.max_model_len {run.max_model_len} (theirs {tokens})")
    return differ


def other_model(engine: Mapping[str, Any]) -> list[str]:
    """Options of the engine that may make another model of the published one, or other answers."""
    return [
        f"engine.{option} {value!r} (theirs {_theirs(option)})"
        for option, value in engine.items()
        if option not in _SPEED and value not in (*_NOTHING, *_AS_PUBLISHED.get(option, ()))
    ]


def _theirs(option: str) -> str:
    return repr(_AS_PUBLISHED[option][0]) if option in _AS_PUBLISHED else "vLLM's default"


def other_arm(entry: Result) -> list[str]:
    """What differs from the published setting that is nearest."""
    arm = entry.arm
    if arm is None:
        return ["the run does not say all of the arm's settings"]
    control = [f"control {arm.control.words} (theirs none)"] if arm.control else []
    removed = [f"{key} {ours!r} (removed since)" for key, ours in entry.removed.items()]
    _, others = _nearest(arm)
    differ = [f"{key} {ours!r} (theirs {theirs!r})" for key, (ours, theirs) in others.items()]
    return [*control, *differ, *removed]


def in_words(arm: Arm) -> str:
    """Which published setting an arm has, as far as it is not the paper's in float32."""
    if not arm.steps:
        return ""
    name, _ = _nearest(arm)
    preset = [f"preset {name}"] if name != PRESETS[0] else []
    exact = SlotParams.model_fields[_FREE].default
    rounding = [f"{_FREE} {arm.rounding}"] if arm.rounding != exact else []
    return ", ".join([*preset, *rounding])


def _nearest(arm: Arm) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """The preset that differs least from the arm's settings, and how: by setting, ours and theirs.
    Without steps no setting says anything."""
    differ = {}
    for name in PRESETS:
        theirs = dict(SlotParams(preset=name, steps=arm.steps, lr=arm.lr), preset=None)
        differ[name] = {
            key: (getattr(arm, key), value)
            for key, value in theirs.items()
            if arm.steps and key != _FREE and getattr(arm, key) != value
        }
    return min(differ.items(), key=lambda found: len(found[1]))
