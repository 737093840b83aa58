"""vLLM's Rust front end sends requests to the engine core by itself, so they are admitted there.

It has no endpoint that scores or searches: each of its requests is a caller's.
"""

from typing import Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.engine.core import EngineCore

from slot_vllm.engine.frontend.admission import Admission
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.engine_settings import admits_in_core, read_config


def install() -> None:
    """From now on this process's engine cores to which admission is left have it. Idempotent."""

    @wrap(EngineCore, "preprocess_add_request")
    def preprocess_add_request(
        original: Any, self: Any, request: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if admits_in_core(self.vllm_config):
            _admission(self).admit(request, request.external_req_id or request.request_id)
        return original(self, request, *args, **kwargs)


def _admission(core: Any) -> Admission:
    if not hasattr(core, "slot_admission"):
        model_config = core.vllm_config.model_config
        core.slot_admission = Admission(
            read_config(core.vllm_config), lambda: cached_tokenizer_from_config(model_config)
        )
    admission: Admission = core.slot_admission
    return admission
