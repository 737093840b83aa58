"""What SLOT costs: ``python -m slot_vllm.bench optimize | serve | burst | table | plot``."""
