"""How SLOT runs on a worker: a table in its log."""

from slot_vllm import __version__
from slot_vllm.engine.worker.runner_state import RunnerState
from slot_vllm.params import PAPER_STEPS, SlotConfig, SlotParams

_FOR_ALL = (
    f"""--additional-config '{{"slot": {{"steps": {PAPER_STEPS}}}}}' or SLOT_STEPS={PAPER_STEPS}"""
)


def startup_table(config: SlotConfig, v2: bool, head: str, state: RunnerState) -> str:
    """A line per thing that it is good to know; what is off or the paper's is left out."""
    size = state.workspace_size
    rows = {
        "head": head,
        "workspace": f"{size.mb} MiB ({size.reason})",
        "hidden cache": config.hidden_cache,
        "delta cache": f"{config.delta_cache_mb} MiB ({state.sharing.cache.capacity} deltas)",
        "requests": _defaults(config),
        "at most": ", ".join(_limits(config)),
        "readable": ", ".join(_readable(config)),
    }
    shown = [f"  {name:<14}{text}" for name, text in rows.items() if text]
    return "\n".join([f"SLOT {__version__} on the {'V2' if v2 else 'V1'} model runner", *shown])


def _defaults(config: SlotConfig) -> str:
    paper = SlotParams()
    names = [name for name in SlotParams.model_fields if name not in ("preset", "steps", "lr")]
    values = {name: getattr(config, name) for name in names}
    others = [f"{k} {v}" for k, v in values.items() if v != getattr(paper, k)]
    steps = config.steps or PAPER_STEPS
    settings = ", ".join([f"steps {steps}", f"lr {config.lr:g}", *others])
    if config.steps:
        return settings
    return f"no SLOT for those that name no slot_* key, else {settings}; for all: {_FOR_ALL}"


def _limits(config: SlotConfig) -> list[str]:
    found = [f"{config.max_steps} steps"]
    if config.max_prompt_tokens is not None:
        tokens, longer = config.max_prompt_tokens, config.long_prompts
        found.append(f"max_prompt_tokens {tokens} (long_prompts {longer})")
    if config.max_concurrent is not None:
        found.append(f"max_concurrent {config.max_concurrent}")
    return found


def _readable(config: SlotConfig) -> list[str]:
    kept = {"keep_deltas": config.keep_deltas, "receipts": config.receipts}
    loss = ["report_loss on"] if config.report_loss else []
    return [*loss, *(f"{name} {count}" for name, count in kept.items() if count)]
