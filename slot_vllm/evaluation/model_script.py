"""A model that is made on first use: by a script, or out of its wheels (``get:NAME``)."""

import logging
import subprocess
import sys
from pathlib import Path

from slot_vllm.evaluation.config import RunConfig
from slot_vllm.evaluation.errors import ConfigError
from slot_vllm.evaluation.models import get
from slot_vllm.evaluation.models.catalog import PREFIX, find

logger = logging.getLogger(__name__)


def make_model(config: RunConfig) -> None:
    """Runs ``python MODEL_SCRIPT MODEL`` if the model's path does not exist, and gets a model
    ``get:NAME``. Raises ConfigError, and RunFailed for a model that cannot be had."""
    if config.model.startswith(PREFIX):
        get.get(find(config.model.removeprefix(PREFIX)))
        return
    if config.model_script is None or Path(config.model).exists():
        return
    logger.info("%s does not exist yet: %s makes it", config.model, config.model_script)
    made = subprocess.run([sys.executable, config.model_script, config.model], check=False)
    if made.returncode:
        raise ConfigError(
            f"model_script={config.model_script!r}: it ended with {made.returncode} and made no "
            f"{config.model}"
        )
