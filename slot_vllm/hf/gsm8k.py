"""``python -m slot_vllm.hf.gsm8k``, which is gone: it says what to use."""

import sys

if __name__ == "__main__":
    print(
        "error: removed in 0.2.0: the evaluation runs transformers, too: slot-vllm eval "
        "--config configs/gsm8k_transformers.yaml --set model=MODEL tasks.0.data=FILE",
        file=sys.stderr,
    )
    sys.exit(2)
