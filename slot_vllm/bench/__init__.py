"""What SLOT costs: ``python -m slot_vllm.bench --help``."""
