"""Every contact with vLLM. Nothing outside this package knows vLLM's internals.

What is touched, why, and when it can go. Names are those of vLLM 0.32; only that release is tested.

At start-up, in the class:

- ``EngineArgs.create_engine_config`` (``plugin``; the one wrap of an engine that does not ask for
  SLOT): expands ``--worker-extension slot_vllm``, because ``resolve_obj_by_qualname`` needs a dot;
  refuses what cannot work; resolves the settings. Can go when vLLM's worker extensions get a
  configuration hook.
- ``Worker.load_model`` (``worker``; wrapped in processes whose worker carries the extension): an
  extension class can add methods but not override any. Can go when extensions get a load hook.
- ``InputProcessor.__init__`` (``admission``) and ``GenerateBaseServing.__init__`` (``server``;
  both wrapped once an engine asks for SLOT): to reach the instances of that engine. Can go when
  vLLM has an admission hook that may refuse a request and rewrite its parameters.
- ``BeamSearchOfflineMixin.beam_search``, ``BeamSearchOnlineMixin.beam_search`` (``beam_search``):
  mark their requests, which look like prompts but are not. Can go when such requests say so.

Per request, on instances of an engine that asks for SLOT:

- ``InputProcessor.process_inputs`` and ``assign_request_id``: every request passes one of them, and
  ``EngineCoreRequest.sampling_params`` is the engine's own copy.
- ``GenerateBaseServing._log_inputs`` and the serving objects' entry methods: the last places where
  an error still becomes HTTP 400 for a streaming request, and where JSON booleans can be seen.

Per step, on the model runner of an engine that asks for SLOT:

- both runners, ``execute_model``: arrivals and departures; ``initialize_kv_cache``: what the hidden
  states cost.
- the worker, ``reload_weights``, ``update_weights``, ``finish_weight_update``, ``sleep``,
  ``wake_up``, ``add_lora``: deltas of other weights are not shared any more.
- V1, ``_prepare_inputs`` and ``_model_forward``: which rows get logits, and the hidden states.
- V2, ``sample``: the hidden states and the batch.
- ``LogitsProcessor.forward`` of the model's own instance: adds W delta before the soft cap and the
  scale. Can go, with ``execute_model`` and what gives the hidden states, when the runners have a
  hook before the logits.

In the KV cache (``hidden_cache``; 0.32, where ``HiddenStateCacheSpec`` is):

- a layer of our own in ``static_forward_context``, added once the model is loaded, under a name
  with one integer (``bind_kv_cache`` orders by it). It extends ``CacheOnlyAttentionLayer``, whose
  builder allows no CUDA graphs. Can go when vLLM keeps last hidden states for whoever asks.
- ``kv_cache_config.kv_cache_groups``, the runners' block tables and slot mappings: read.

Read but not changed: ``LogitsProcessor`` (``_get_logits``, ``org_vocab_size``, ``soft_cap``,
``scale``), ``SamplingParams.extra_args`` and ``skip_reading_prefix_cache``,
``EngineCoreRequest.cache_salt``, ``InputProcessor.tokenizer``,
``SchedulerOutput``, V1's ``input_batch``, ``requests`` and
``query_start_loc``, V2's ``InputBatch`` and ``block_tables``, ``get_adapter_absolute_path``,
``VLLMValidationError``.
"""
