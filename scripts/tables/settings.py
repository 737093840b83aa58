"""What slot_vllm/params.py declares: a row per setting."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from slot_vllm.params import REQUEST_PREFIX, SlotConfig, SlotParams
from slot_vllm.setting import Setting
from slot_vllm.validation_errors import allowed_values
from tables.markdown import table


def settings(place: Path, _: Sequence[str]) -> str:
    if place.name == "request":
        fields, prefix = SlotParams.model_fields, REQUEST_PREFIX
    else:
        own = SlotConfig.model_fields.keys() - SlotParams.model_fields.keys()
        fields, prefix = {n: f for n, f in SlotConfig.model_fields.items() if n in own}, ""
    rows = []
    for name, field in fields.items():
        said, default = Setting.of(field), field.default
        shown = default if isinstance(default, str) else json.dumps(default)
        if default is None and prefix:  # HTTP requests cannot say null
            shown = "none"
        allowed = re.sub("'([^']*)'", r"`\1`", allowed_values(field))
        rows.append([f"`{prefix}{name}`", f"`{shown}`", allowed, said.meaning, said.cost])
    return table(["key", "default", "allowed", "what it is", "what it costs"], rows)
