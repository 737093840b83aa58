"""All of vLLM that is relied on: a start-up check looks for it (``release``), and so does
``scripts/check_vllm.py`` in any release's source, which also writes docs/contacts.md from it."""

from slot_vllm.engine.vllm_contract.front_end import FRONT_END
from slot_vllm.engine.vllm_contract.hidden_cache import HIDDEN_CACHE
from slot_vllm.engine.vllm_contract.scheduler import SCHEDULER
from slot_vllm.engine.vllm_contract.server import SERVER
from slot_vllm.engine.vllm_contract.worker import WORKER

CONTACTS = (*FRONT_END, *SERVER, *WORKER, *HIDDEN_CACHE, *SCHEDULER)
