"""What of vLLM is relied on, each thing once."""
