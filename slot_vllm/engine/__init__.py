"""SLOT's place in vLLM. Nothing outside this package knows vLLM's internals; all that is known of
them is listed once, in ``vllm_contract``, from which docs/contacts.md is made."""
