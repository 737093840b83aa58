"""The OpenAI-compatible server: its checks, what it shows, and the endpoints that score."""

from functools import partial

from slot_vllm.engine.vllm_contract.contact import ADMISSION, Contact

_XARGS = "vLLM keeps the JSON types of custom arguments"
_SPANS = "request spans can be extended"


_scoring = partial(
    Contact, "scoring", why="leaves what scores alone", takes="request, raw_request",
    until="the requests of endpoints that score say so",
)  # fmt: skip

# Methods of the server's classes, and where their objects have the engine. All read probabilities
# of the next token: /generative_scoring, /v1/systemone and, since 0.33, /v1/decisions.
SCORING_ENDPOINTS = {
    _scoring(
        "vllm.entrypoints.generate.generative_scoring.serving",
        "ServingGenerativeScoring.create_generative_scoring",
    ): "engine_client",
    _scoring(
        "vllm.entrypoints.generate.structured_decisions.serving",
        "ServingStructuredDecisions.create_decision",
    ): "strategy.context.engine_client",
    _scoring(
        "vllm.entrypoints.openai.decisions.serving", "OpenAIServingDecisions.create_decisions",
        optional=True,
    ): "strategy.context.engine_client",
}  # fmt: skip

_server = partial(Contact, "server")
_checking = partial(_server, takes="request, raw_request", until=ADMISSION)
_tracing = partial(Contact, "tracing", "vllm.v1.engine.output_processor")
_front_end = partial(Contact, "front end")
_metrics = partial(Contact, "metrics")

SERVER: tuple[Contact, ...] = (
    # The OpenAI-compatible server.
    _front_end(
        "vllm.entrypoints.generate.base.serving", "GenerateBaseServing.__init__",
        "reaches the serving objects of an engine that asks for SLOT", takes="engine_client, ...",
        until=ADMISSION,
    ),
    _front_end(
        "vllm.entrypoints.generate.base.serving", "GenerateBaseServing._log_inputs",
        "the last place where an error is HTTP 400 for a streaming request",
        takes="request_id, inputs, params, lora_request, ...", until=ADMISSION,
    ),
    *(
        _front_end(
            f"vllm.entrypoints.openai.{path}.protocol", name,
            "keeps the settings of a request as they were sent", attributes="vllm_xargs",
            until=_XARGS,
        )
        for path, name in (
            ("chat_completion", "ChatCompletionRequest"),
            ("completion", "CompletionRequest"),
            ("responses", "ResponsesRequest"),
        )
    ),
    _front_end(
        "vllm.entrypoints.anthropic.protocol", "AnthropicMessagesRequest",
        "keeps the settings of a request as they were sent", until=_XARGS,
    ),
    _checking(
        "vllm.entrypoints.openai.chat_completion.serving",
        "OpenAIServingChat.create_chat_completion", "checks a chat request's settings",
    ),
    _server(
        "vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat",
        "every chat request passes the check", calls="_log_inputs",
    ),
    _checking(
        "vllm.entrypoints.openai.chat_completion.batch_serving",
        "OpenAIServingChatBatch.create_batch_chat_completion",
        "checks the settings of a batch of chats",
    ),
    _checking(
        "vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion.create_completion",
        "checks a completion request's settings",
    ),
    _server(
        "vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion",
        "every completion request passes the check", calls="_log_inputs",
    ),
    _checking(
        "vllm.entrypoints.openai.responses.serving", "OpenAIServingResponses.create_responses",
        "checks a response request's settings",
    ),
    _server(
        "vllm.entrypoints.openai.responses.serving", "OpenAIServingResponses",
        "every response request passes the check", calls="_log_inputs _generate_with_builtin_tools",
    ),
    _server(
        "vllm.entrypoints.openai.responses.serving",
        "OpenAIServingResponses._generate_with_builtin_tools",
        "checks a response's prompt before its generator starts",
        takes="*, engine_input, sampling_params, lora_request, ...", until=ADMISSION,
    ),
    _server(
        "vllm.v1.engine.async_llm", "AsyncLLM", "reaches the engine's admission",
        attributes="input_processor vllm_config",
    ),
    _checking(
        "vllm.entrypoints.anthropic.serving", "AnthropicServingMessages.create_messages",
        "checks a message request's settings",
    ),
    _checking(
        "vllm.entrypoints.scale_out.token_in_token_out.serving", "ServingTokens.serve_tokens",
        "checks the settings of a request of tokens", optional=True,
    ),
    *SCORING_ENDPOINTS,
    *(
        Contact(
            "scoring", at.path, at.name.partition(".")[0], "which engine an endpoint asks",
            attributes=engine.partition(".")[0], optional=True,
        )
        for at, engine in SCORING_ENDPOINTS.items()
    ),
    # What a server shows.
    _metrics(
        "vllm.entrypoints.serve.instrumentator.metrics", "attach_router",
        "appends to what /metrics answers", takes="app",
        until="vLLM serves the metrics of a plugin's workers",
    ),
    _metrics(
        "vllm.v1.engine.core_client", "AsyncMPClient", "which engines there are",
        attributes="engine_ranks_managed",
    ),
    _metrics(
        "vllm.v1.engine.core_client", "AsyncMPClient.call_utility_all_async", "asks every engine",
        takes="method, ...",
    ),
    _metrics(
        "vllm.v1.engine.async_llm", "AsyncLLM", "reaches the engines",
        attributes="engine_core collective_rpc",
    ),
    _tracing(
        "instrument_manual", "adds attributes to the request spans", takes="*, attributes, ...",
        until=_SPANS,
    ),
    _tracing(
        "OutputProcessor.do_tracing", "knows whose span is being made",
        takes="engine_core_output, req_state, iteration_stats", calls="instrument_manual",
        until=_SPANS,
    ),
    _tracing(
        "RequestState.from_new_request", "keeps a request's settings for its span",
        takes="*, request, ...", until=_SPANS,
    ),
)  # fmt: skip
