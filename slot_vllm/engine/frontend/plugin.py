"""Entry point of vLLM's general plugins, loaded in every process of every engine.

It wraps ``EngineArgs.create_engine_config``, a start-up function, and nothing else, but for vLLM's
Rust front end where that is asked for. Everything else is put in place when an engine asks for
SLOT, on objects that belong to that engine.
"""

import logging
from typing import Any

from vllm.usage.usage_lib import UsageContext

from slot_vllm.engine.frontend import raw_settings, startup
from slot_vllm.engine.vllm_contract import release
from slot_vllm.engine.vllm_contract.wraps import wrap
from slot_vllm.engine.wire.engine_settings import EXTENSION, asks_for_slot

logger = logging.getLogger("vllm.slot_vllm")


def register() -> None:
    """Idempotent: vLLM may load plugins more than once in a process."""
    from vllm import envs
    from vllm.engine.arg_utils import EngineArgs

    if envs.VLLM_USE_RUST_FRONTEND and not release.missing("Rust front end"):
        from slot_vllm.engine.frontend import rust_front_end

        rust_front_end.install()

    @wrap(EngineArgs, "create_engine_config")
    def create_engine_config(
        original: Any, self: Any, usage_context: Any = None, headless: bool = False, *args: Any
    ) -> Any:
        # Workers look an extension up by a name with a dot.
        if self.worker_extension_cls == startup.BARE_NAME:
            self.worker_extension_cls = EXTENSION
        vllm_config = original(self, usage_context, headless, *args)
        if asks_for_slot(vllm_config):
            _prepare(vllm_config, usage_context, startup.is_rust(self, headless))
        else:
            startup.refuse_settings(vllm_config)
        return vllm_config


def _prepare(vllm_config: Any, usage_context: Any, rust: bool) -> None:
    """Prepare an engine that asks for SLOT. rust: whether vLLM's Rust front end serves it. Raises
    SlotError."""
    serves = usage_context == UsageContext.OPENAI_API_SERVER
    # Before anything is imported that another release may lack.
    release.check_front_end(serves)
    startup.refuse_what_cannot_work(vllm_config)
    if rust:
        release.require("Rust front end")
        logger.warning(
            "vLLM's Rust front end serves SLOT, but none of its endpoints, and nothing of it on "
            "/metrics"
        )
    config = startup.resolve_config(vllm_config, rust)
    if vllm_config.kv_transfer_config is not None:
        release.require("KV connector")
    if config.max_concurrent is not None:
        release.require("limited scheduler")
        from slot_vllm.engine.frontend.scheduler import limit_completions

        limit_completions(vllm_config)
    lacking = release.missing("metrics") if serves else []
    if lacking:
        logger.warning("SLOT shows nothing on /metrics: %s", release.describe(lacking))
    unknown = release.missing("scoring") if serves else []
    if unknown:
        logger.warning(
            "SLOT does not find some endpoints that score texts; if this release has them "
            "elsewhere, SLOT learns from the texts that they score: %s",
            release.describe(unknown),
        )
    traces = vllm_config.observability_config.otlp_traces_endpoint is not None
    if traces:
        release.require("tracing")
    raw_settings.install()
    from slot_vllm.engine.frontend import admission, beam_search, metrics, scoring, server, tracing

    admission.install()
    beam_search.install()
    server.install()
    if serves and not lacking:
        metrics.install()
    if serves:
        scoring.install({contact.path for contact, _ in unknown})
    if traces:
        tracing.install()
