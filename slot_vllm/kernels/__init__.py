"""The inner loops of the optimization. Each file holds one operation."""
