"""Records that cross a process boundary: plain data, no vLLM."""
