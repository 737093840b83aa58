"""``/metrics``, ``/slot/stats`` and receipts of a real server; the requests' outcomes are known."""

import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from slot_vllm.engine.frontend.cached_rpc import FRESH_SECONDS
from tests.engine.server import MODEL, Server, serving
from tests.engine.test_metrics import Samples, outcomes, parsed, value

OPTIONS = ("--dtype", "float32", "--max-model-len", "512")
PLUGINS = {"VLLM_PLUGINS": "slot_vllm,slot_stats"}


@pytest.fixture(scope="module")
def server(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    slot = {"steps": 3, "report_loss": True, "receipts": 30}
    # The long name of --worker-extension slot_vllm.
    with serving(
        tiny_model,
        slot,
        log,
        *OPTIONS,
        extension="slot_vllm.SlotWorkerExtension",
        environment=PLUGINS,
    ) as server:
        yield server
        assert server.alive(), server.said()[-3000:]


def get(server: Server, path: str) -> httpx.Response:
    response = httpx.get(server.url + path, timeout=60, trust_env=False)
    assert response.status_code == 200, response.text
    return response


def scrape(server: Server) -> Samples:
    return parsed(get(server, "/metrics").content)


def scrape_anew(server: Server) -> Samples:
    """Not what an earlier scrape was told."""
    time.sleep(FRESH_SECONDS)
    return scrape(server)


def complete(server: Server, prompt: Any, slot_steps: int | None = None, **options: Any) -> Any:
    body: dict[str, Any] = dict(options.pop("extra_body", {}))
    if slot_steps is not None:
        body["vllm_xargs"] = {"slot_steps": slot_steps}
    return server.client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=4, extra_body=body, **options
    )


def ask(server: Server, prompt: str) -> int:
    """Two equal requests, one without SLOT, one of one token, a beam search, and one that is
    refused; the prompt's tokens."""
    tokens = complete(server, prompt, 2).usage.prompt_tokens
    complete(server, prompt, 2)
    complete(server, prompt, 0)
    complete(server, [7])
    complete(server, prompt, extra_body={"use_beam_search": True}, n=2)
    with pytest.raises(openai.BadRequestError):
        complete(server, prompt, -1)
    return int(tokens)


def difference(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    changes = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: change for name, change in changes.items() if change}


def test_a_scrape_shows_what_was_served(server: Server) -> None:
    before = scrape_anew(server)
    tokens = ask(server, "Say something about the number seven.")
    after = scrape_anew(server)
    changes = difference(outcomes(after), outcomes(before))
    assert changes == {"optimized": 1, "shared": 1, "plain": 1, "one_token": 1, "bypassed": 1}
    name = "vllm:slot_fallbacks_total"
    assert value(after, name, outcome="bypassed", reason="beam_search") >= 1

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    # The request of one token counts as a prompt that was looked at.
    assert grown("vllm:slot_prompt_tokens_total") == tokens + 1
    assert grown("vllm:slot_optimize_seconds_count") == 2
    assert grown("vllm:slot_loss_drop_nats_bucket", le="+Inf") == 1
    rows = [grown("vllm:slot_hidden_rows_total", source=s) for s in ("cached", "computed")]
    assert sum(rows) == 2 * tokens + 1
    assert value(after, "vllm:slot_workspace_bytes", model_name=MODEL, engine="0") == 16 << 20
    assert value(after, "vllm:slot_requests_running") == 0
    assert value(after, "vllm:slot_up") == 1
    # vLLM's own are still there.
    assert value(after, "vllm:num_requests_running", engine="0") == 0
    assert any(name == "process_cpu_seconds_total" for name, _ in after)


def test_stats_as_json(server: Server) -> None:
    shown = outcomes(scrape_anew(server))
    (stats,) = get(server, "/slot/stats").json()["workers"]
    assert {name: stats[name] for name in shown} == shown
    assert stats["workspace_bytes"] == 16 << 20


def receipts(server: Server, response_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(server, f"/slot/requests/{response_id}").json()["receipts"]
    return found


def test_the_receipts_of_each_kind_of_response(server: Server) -> None:
    prompts = ["What is seven and five?", "What is eleven less three?"]
    both = complete(server, prompts, 2, n=2)
    found = receipts(server, both.id)
    assert [r["request_id"] for r in found] == [f"{both.id}-0", f"{both.id}-1"]
    for receipt, prompt in zip(found, prompts, strict=True):
        assert (receipt["outcome"], receipt["steps"]) == ("applied", 2)
        # A token per character.
        assert receipt["tokens"] >= len(prompt) - 1
        assert receipt["loss_after"] < receipt["loss_before"] and receipt["last_kl"] > 0
        assert receipt["seconds"] > 0 and receipt["prompts"] >= 1

    def outcome(response: Any) -> tuple[str, str | None]:
        (receipt,) = receipts(server, response.id)
        return receipt["outcome"], receipt["reason"]

    assert outcome(complete(server, prompts[0], 2)) == ("shared", None)
    assert outcome(complete(server, prompts[0], 0)) == ("plain", None)
    assert outcome(complete(server, [7])) == ("one_token", None)
    beams = complete(server, "Any", extra_body={"use_beam_search": True}, n=2)
    assert outcome(beams) == ("bypassed", "beam_search")
    chat = [{"role": "user", "content": "How many?"}]
    options: dict[str, Any] = {"model": MODEL, "messages": chat, "max_tokens": 2}
    converse: Any = server.client.chat.completions.create
    assert outcome(converse(**options)) == ("applied", None)
    # An id that the client chose is as secret as it made it.
    named = converse(**options, extra_headers={"X-Request-Id": "mine"})
    assert named.id == "chatcmpl-mine" and outcome(named) == ("shared", None)
    with complete(server, "Five less two", 3, stream=True, extra_body={"ignore_eos": True}) as s:
        chunk = next(iter(s))
        assert outcome(chunk) == ("applied", None)
        list(s)
    assert outcome(chunk) == ("applied", None)
    unknown = httpx.get(f"{server.url}/slot/requests/cmpl-x", timeout=60, trust_env=False)
    assert unknown.status_code == 404 and "no response has this id" in unknown.text


def test_a_scrape_while_requests_stream(server: Server) -> None:
    with complete(server, "Seven and five", 3, stream=True, extra_body={"ignore_eos": True}) as s:
        next(iter(s))
        assert value(scrape(server), "vllm:slot_up") == 1
        list(s)


def test_the_log_says_how_it_runs_in_a_table(server: Server) -> None:
    lines = server.said().splitlines()
    (first,) = [i for i, line in enumerate(lines) if "SLOT 0.2.0 on the V1 model runner" in line]
    # vLLM begins each line alike.
    start = lines[first].index("SLOT 0.2.0")
    rows = [line[start:].rstrip() for line in lines[first + 1 : first + 8]]
    assert rows[0].startswith("  head          ") and rows[0].endswith("torch.float32")
    assert rows[1:3] == ["  workspace     16 MiB (as set)", "  hidden cache  on"]
    assert rows[3].startswith("  delta cache   64 MiB (") and rows[3].endswith(" deltas)")
    assert rows[4:] == [
        "  requests      steps 3, lr 0.1",
        "  at most       100 steps",
        "  readable      report_loss on, receipts 30",
    ]


@pytest.mark.full
def test_several_server_processes_show_the_same(
    tiny_model: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("servers") / "log"
    options = (*OPTIONS, "--api-server-count", "2")
    with serving(tiny_model, {"steps": 3}, log, *options, environment=PLUGINS) as several:
        ask(several, "Say something about the number seven.")
        # Connections are spread over the processes.
        shown = [scrape(several) for _ in range(12)]
    # vLLM's own, merged over the processes.
    assert value(shown[0], "vllm:request_success_total", finished_reason="length") >= 4
    scrapes = [outcomes(samples) for samples in shown]
    assert scrapes[0]["optimized"] == scrapes[0]["shared"] == 1
    assert all(scraped == scrapes[0] for scraped in scrapes)
    assert scrapes[0]["plain"] == 1
