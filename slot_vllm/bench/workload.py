"""What ``serve`` asks of an engine: the fixed workloads of ``configs/shapes/workloads.yaml``."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from slot_vllm.params import Integer

Count = Annotated[Integer, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Load(_Strict):
    """requests: of one round. concurrency: how many of them are in the engine at any time."""

    concurrency: Count
    requests: Count


class Workload(_Strict):
    """input_tokens, output_tokens: of each request."""

    input_tokens: Count
    output_tokens: Annotated[Integer, Field(ge=2)]
    loads: tuple[Load, ...]

    @property
    def tokens(self) -> int:
        """The longest sequence."""
        return self.input_tokens + self.output_tokens

    @property
    def concurrency(self) -> int:
        """The largest one."""
        return max(load.concurrency for load in self.loads)

    def changed(
        self,
        input_tokens: int | None,
        output_tokens: int | None,
        concurrency: int | None,
        requests: int | None,
    ) -> "Workload":
        """This workload with what is not None instead. concurrency: keeps the one load that has
        it, or makes one of as many requests."""
        loads = self.loads
        if concurrency is not None:
            loads = tuple(one for one in loads if one.concurrency == concurrency) or (
                Load(concurrency=concurrency, requests=concurrency),
            )
        if requests is not None:
            loads = tuple(one.model_copy(update={"requests": requests}) for one in loads)
        return Workload(
            input_tokens=input_tokens or self.input_tokens,
            output_tokens=output_tokens or self.output_tokens,
            loads=loads,
        )


def read_workloads(path: Path) -> dict[str, Workload]:
    """By name. Raises pydantic.ValidationError for what is no workload."""
    return TypeAdapter(dict[str, Workload]).validate_python(
        yaml.safe_load(path.read_text(encoding="utf-8"))
    )


def differences(fixed: Workload, used: Workload) -> dict[str, Any]:
    """The settings that are not those of the fixed workload: name -> fixed and used."""
    before, after = fixed.model_dump(mode="json"), used.model_dump(mode="json")
    return {
        name: {"fixed": before[name], "used": after[name]}
        for name in before
        if before[name] != after[name]
    }


def make_prompts(count: int, tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random token ids, equal for equal arguments."""
    generator = np.random.default_rng(seed)
    found: list[list[int]] = generator.integers(vocabulary, size=(count, tokens)).tolist()
    return found
