"""The algorithm: hidden states and targets in, deltas and losses out. Imports no vLLM."""
