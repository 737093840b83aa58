"""Every contact with vLLM. Nothing outside this package knows vLLM's internals.

What is touched, why, and when it can go. Names are those of vLLM 0.32; only that release is tested.
``contacts`` has every name relied on as data, for the check of a release (``compat``): at start-up
of the vLLM that runs, by ``scripts/check_vllm.py`` of any other's source. In a vLLM that was patched
with one of ``patches/`` (``own_hooks``) the model runners and the logits processor call hooks of
their own, and are not wrapped.

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
- ``attach_router`` of ``vllm.entrypoints.serve.instrumentator.metrics`` (``metrics``; wrapped once
  a server's engine asks for SLOT): to put a route before ``/metrics`` that appends to what vLLM's
  own answers. A collector in its registry would not do: with several server processes vLLM merges
  files only. Can go when vLLM serves metrics of a plugin's workers.
- ``RequestState.from_new_request``, ``OutputProcessor.do_tracing`` and ``output_processor``'s
  ``instrument_manual`` (``tracing``; wrapped once an engine asks for SLOT and for traces): to add
  attributes to the request spans. Can go when spans can be extended.
- the field ``vllm_xargs`` of the server's request models (``raw_settings``; once an engine asks for
  SLOT): what pydantic makes of a JSON boolean must not pass for an integer.
  Can go when vLLM keeps the types of custom arguments.
- ``BeamSearchOfflineMixin.beam_search``, ``BeamSearchOnlineMixin.beam_search`` (``beam_search``):
  mark their requests (``origins``), which look like prompts but are not, and are many for one. Can
  go when such requests say so.
- ``ServingGenerativeScoring.create_generative_scoring``,
  ``ServingStructuredDecisions.create_decision`` (``scoring``; wrapped once a server's engine asks
  for SLOT): mark their requests, whose text is not to be answered. Can go as beam search's.

Per request, on instances of an engine that asks for SLOT:

- ``InputProcessor.process_inputs`` and ``assign_request_id``: every request passes one of them, and
  ``EngineCoreRequest.sampling_params`` is the engine's own copy.
- ``GenerateBaseServing._log_inputs``, ``_generate_with_builtin_tools`` of the one for responses
  (which calls it too late) and the serving objects' entry methods: the last places where an error
  still becomes HTTP 400 for a streaming request, and where JSON booleans can be seen.

Per step, in the scheduler of an engine that sets ``max_concurrent``:

- ``SchedulerConfig.scheduler_cls`` names ``scheduler.LimitedScheduler`` or its asynchronous form,
  subclasses of vLLM's. They override ``_reserve_prefill_lookahead`` (through which the token count
  of every request passes last), ``_handle_blocked_waiting_request`` (what it refuses is passed
  over), ``_preempt_request`` and ``_update_after_schedule``, and read ``Request``,
  ``need_mamba_block_aligned_split``, ``num_prefill_lookahead`` and
  ``kv_cache_manager.get_computed_blocks``. Can go when a runner can put a prompt's sampling off.

Per step, on the model runner of an engine that asks for SLOT (what is raised in what we add is
contained, ``failures``; what the wrapped method raises passes through):

- both runners, ``execute_model``: arrivals and departures; ``initialize_kv_cache``: what the hidden
  states cost.
- the worker, ``compile_or_warm_up_model``: vLLM's own warm-up requests are nobody's;
  ``reload_weights``, ``reset_weights`` (from 0.32 on), ``update_weights``,
  ``finish_weight_update``, ``sleep``, ``wake_up``, ``add_lora``: deltas of other weights are not
  shared any more.
- V1, ``_prepare_inputs`` and ``_model_forward``: which rows get logits, and the hidden states.
- V1 on a CPU, the generators of seeded requests whose prompts are split (``input_batch.generators``
  and the request's own): replaced by such as can be rewound, without which the engine core dies.
  Can go with V1, or when vLLM rewinds a CPU's generators.
- V2, ``sample``: the hidden states and the batch.
- ``LogitsProcessor.forward`` of the model's own instance: adds W delta before the soft cap and the
  scale. Can go, with ``execute_model`` and what gives the hidden states, when the runners have a
  hook before the logits.

In the KV cache (``hidden_cache``; from 0.29 on, before that it is laid out otherwise):

- a layer of our own in ``static_forward_context``, added once the model is loaded, under a name
  with one integer (``bind_kv_cache`` orders by it). It extends ``CacheOnlyAttentionLayer``, whose
  builder allows no CUDA graphs. Can go when vLLM keeps last hidden states for whoever asks.
- ``kv_cache_config.kv_cache_groups``, the runners' block tables and slot mappings: read.

Among workers (``ranks``, ``worker``, ``agreement``):

- ``get_tp_group()``: ``all_gather`` while deltas are learned, its ``cpu_group`` for flags that say
  what failed; ``get_pp_group().is_last_rank``: only there is a head; both groups' ``cpu_group``,
  at start-up, for what all workers must have alike.
- ``LogitsProcessor._gather_logits``: called by us, after W delta was added to a rank's own columns.
- the head's ``tp_size`` and ``num_added_embeddings``: read, to know which columns a rank has.

Called, for scrapes but at most once a second (``coalesced``), and for receipts one at a time
(``batched``): ``AsyncMPClient.call_utility_all_async`` and ``engine_ranks_managed`` (``metrics``,
and ``stats_endpoint``, a plugin of the group ``vllm.endpoint_plugins``), because
``EngineClient.collective_rpc`` gives the first engine's answer only.

Read but not changed: ``LogitsProcessor`` (``_get_logits``, ``org_vocab_size``, ``soft_cap``,
``scale``), ``SamplingParams.extra_args`` and ``skip_reading_prefix_cache``,
``EngineCoreRequest.cache_salt``, ``InputProcessor.tokenizer``, ``SchedulerOutput`` (``batch`` names
the fields), V1's ``input_batch``, ``requests`` and ``query_start_loc``, V2's ``InputBatch`` and
``block_tables``, ``get_adapter_absolute_path``, ``VLLMValidationError``,
``ParallelConfig.tensor_parallel_size``, ``current_platform``; how the server names the requests of
a response (``response_ids``).
"""
