"""Settings that go together, by name (``slot_preset``). A preset says every setting of a request.

``paper``: the defaults of ``SlotParams``.
``paper-vllm``: what the published vLLM code sets, for each request by itself: other AdamW constants
    and a gradient that is divided by the number of rows once more.
"""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-vllm": {
        "betas": (0.9, 0.95),
        "eps": 1e-6,
        "weight_decay": 1e-5,
        "reduction": "mean_over_rows",
    },
}
