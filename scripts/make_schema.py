"""Write configs/schema.json: what a run's file may say, for editors that complete and check it."""

import argparse
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from slot_vllm.chat_turns import ROLES
from slot_vllm.evaluation.config import RunConfig
from slot_vllm.params import SlotParams
from slot_vllm.presets import PRESETS
from slot_vllm.setting import Setting
from slot_vllm.validation_errors import Allowed

PATH = Path(__file__).resolve().parents[1] / "configs" / "schema.json"

# What validators of ours decide, of which pydantic knows nothing.
_BY_VALIDATOR: dict[str, dict[str, Any]] = {
    "preset": {"enum": [*PRESETS, None]},
    "loss_tokens": {
        "anyOf": [
            {"enum": ["all", "text", *ROLES]},
            {"type": "array", "items": {"enum": [*ROLES]}, "minItems": 1},
            {"type": "integer", "minimum": 1},
        ]
    },
}


# Bounds behind a validator of ours, under pydantic's names.
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


class _Schema(GenerateJsonSchema):
    """Without titles, which repeat the keys; with what docstrings say of each key."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        model: type[BaseModel] = schema["cls"]
        found = super().model_schema(schema)
        found.pop("title", None)
        about, of_keys = documented(model)
        found["description"] = about
        for key, of_key in found["properties"].items():
            of_key |= _BY_VALIDATOR.get(key, {})
            if any(_takes_none(mark) for mark in model.model_fields[key].metadata):
                of_key["anyOf"].append({"const": "none"})
            declared = [m for m in model.model_fields[key].metadata if isinstance(m, Setting)]
            said = declared[0].meaning if declared else of_keys.get(key)
            if said:
                of_key["description"] = said
        return found


def _takes_none(mark: object) -> bool:
    return isinstance(mark, Allowed) and mark.text.startswith("'none'")


def documented(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What the docstrings of a model and of those below it say: of the whole, and by key."""
    about = ""
    of_keys: dict[str, str] = {}
    for each in model.__mro__[: model.__mro__.index(BaseModel)]:
        text = inspect.cleandoc(vars(each).get("__doc__") or "")
        rest = []
        for line in re.sub(r"\n +", " ", text).split("\n"):
            key, colon, said = line.partition(": ")
            if colon and key in model.model_fields:
                of_keys.setdefault(key, said.replace("``", "`"))
            else:
                rest.append(line)
        about = about or " ".join(filter(None, rest)).replace("``", "`")
    return about, of_keys


def schema() -> dict[str, Any]:
    """JSON Schema, draft 2020-12."""
    found = RunConfig.model_json_schema(schema_generator=_Schema)
    of_cells = [key for key in SlotParams.model_fields if key not in ("steps", "lr")]
    cell = {key: {"$ref": f"#/$defs/Arm/properties/{key}"} for key in of_cells}
    settings = found["$defs"]["SweepSettings"]["properties"]["settings"]
    settings |= {"properties": cell, "additionalProperties": False}
    return {"$schema": GenerateJsonSchema.schema_dialect, **_bounded(found)}


def _bounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_bounded(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {_BOUNDS.get(key, key): _bounded(inner) for key, inner in value.items()}


def text() -> str:
    """Of the file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    if not parser.parse_args().check:
        PATH.write_text(text(), encoding="utf-8")
    if PATH.read_text(encoding="utf-8") != text():
        sys.exit(f"not as the code says: {PATH}")
    print(PATH)


if __name__ == "__main__":
    main()
