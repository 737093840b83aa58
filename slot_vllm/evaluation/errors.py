"""How a run ends that cannot go on; each is one line for a person."""


class ConfigError(ValueError):
    """Bad input of a run: one line that says what, where and what is allowed."""


class RunFailed(RuntimeError):
    """A run that failed for a reason which its input does not show."""
