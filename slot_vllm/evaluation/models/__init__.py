"""Real models out of pinned wheels of a package index, by name."""
