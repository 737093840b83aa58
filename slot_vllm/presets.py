"""Settings that go together, by name (``slot_preset``). A preset says every setting of a request.

``paper``: the defaults of ``SlotParams``.
``paper-vllm``: what the published vLLM code sets, for each request by itself: other AdamW constants
    and a gradient that is divided by the number of rows once more.
``safe``: the paper's steps behind a held-out choice and a trust region.
"""

from typing import Any

# Nats. What is bounded is the change of the next-token distribution; see ``max_kl``.
SAFE_MAX_KL = 0.003

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper-vllm": {
        "betas": (0.9, 0.95),
        "eps": 1e-6,
        "weight_decay": 1e-5,
        "reduction": "mean_over_rows",
    },
    "safe": {"guard": "holdout", "max_kl": SAFE_MAX_KL},
}
