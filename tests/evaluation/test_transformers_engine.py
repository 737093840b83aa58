"""transformers' generate() as the engine of a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from slot_vllm.evaluation import config as configuration
from slot_vllm.evaluation.errors import ConfigError, RunFailed
from slot_vllm.evaluation.generation import Completion, Request, check_option_names
from slot_vllm.evaluation.transformers_engine import TransformersEngine
from tests.evaluation.conftest import PROBLEMS, RunMain, WriteConfig

ENGINE: dict[str, Any] = {"dtype": "float32", "max_model_len": 512}
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "n": 1,
    "max_tokens": 8,
    "seed": 0,
    "stop": [],
}
SLOT = {"slot_steps": 3, "slot_lr": 0.1}


@pytest.fixture
def start(write_config: WriteConfig) -> Any:
    def start(engine: dict[str, Any] = ENGINE, **settings: Any) -> TransformersEngine:
        path = write_config(backend="transformers", engine=engine, **settings)
        run = configuration.load(path)
        check_option_names(run)
        return TransformersEngine(run, AutoTokenizer.from_pretrained(run.model))

    return start


def request(name: str, prompt: list[int], **sampling: Any) -> Request:
    return Request(name, prompt, {**GREEDY, **sampling})


def ask(engine: TransformersEngine, *requests: Request) -> dict[str, Completion]:
    counts: dict[str, int] = {}
    found = {}
    for completion in engine.generate(requests, lambda name, n: counts.update({name: n})):
        found[completion.request.id] = completion
    assert counts == {name: sum(map(len, one.tokens)) for name, one in found.items()}
    return found


def test_a_batch_is_its_requests(start: Any) -> None:
    requests = [
        request(f"{arm} {length}", [*range(5, 5 + length)], extra_args=settings)
        for length in (4, 9, 6)
        for arm, settings in (("baseline", {"slot_steps": 0}), ("slot", SLOT))
    ]
    alone = ask(start(), *requests)
    together = ask(start({**ENGINE, "max_num_seqs": 2}), *requests)
    assert list(alone) == [one.id for one in requests]
    assert sorted(together) == sorted(alone)
    for name, one in alone.items():
        assert together[name].tokens == one.tokens
        assert together[name].texts == one.texts
        if name.startswith("slot"):
            assert one.losses is not None
            assert together[name].losses == pytest.approx(one.losses, rel=1e-3)
            assert len(one.losses) == 4
            assert one.losses[-1] < one.losses[0]
        else:
            assert one.losses is None


def test_sampled_answers_follow_from_their_seeds(start: Any) -> None:
    engine = start({**ENGINE, "max_num_seqs": 4})
    warm = {"temperature": 1.0, "top_k": 50, "n": 3}
    asked = [request(str(seed), [*range(5, 15)], **warm, seed=seed) for seed in (1, 2)]
    first, again = ask(engine, *asked), ask(engine, *reversed(asked))
    assert {name: one.tokens for name, one in first.items()} == {
        name: one.tokens for name, one in again.items()
    }
    assert first["1"].tokens != first["2"].tokens
    assert len(first["1"].texts) == 3
    assert first["1"].tokens[0] != first["1"].tokens[1]


def test_why_answers_end(start: Any) -> None:
    engine = start()
    prompt = [*range(5, 15)]
    whole = ask(engine, request("whole", prompt))["whole"]
    assert whole.finish_reasons == ["length"]
    assert len(whole.tokens[0]) == 8
    stop = whole.texts[0][3:5]
    one = ask(engine, request("stopped", prompt, stop=[stop]))["stopped"]
    assert one.finish_reasons == ["stop"]
    assert one.texts == [whole.texts[0].split(stop)[0]]
    engine._model.generation_config.eos_token_id = whole.tokens[0][2]
    engine._ends.add(whole.tokens[0][2])
    ended = ask(engine, request("ended", prompt))["ended"]
    assert (ended.tokens, ended.finish_reasons) == ([whole.tokens[0][:3]], ["stop"])


def test_w_delta(start: Any) -> None:
    engine = start({**ENGINE, "max_num_seqs": 2})
    prompts = ([*range(5, 15)], [*range(20, 26)])
    asked = [request(str(i), p, extra_args=SLOT) for i, p in enumerate(prompts)]
    plain = request("plain", [5, 6, 7])
    answers = engine.generate([*asked, plain], lambda name, n: None, with_shifts=True)
    found = {one.request.id: one.shifts for one in answers}
    assert found["plain"] is None
    for name in ("0", "1"):
        assert found[name].shape == (engine._model.config.vocab_size,)
        assert np.abs(found[name]).max() > 0
    assert not np.array_equal(found["0"], found["1"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": {"gpu_memory_utilization": 0.5}}, "engine.gpu_memory_utilization: not of"),
        ({"engine": {"max_num_seqs": 0}}, "engine.max_num_seqs=0: an integer from 1"),
        ({"engine": {"max_model_len": "all"}}, "engine.max_model_len='all': an integer from 1"),
        ({"ray": {"replicas": 2}}, "ray: its replicas are vLLM's"),
        (
            {"arms": [{"name": "r", "control": {"regex": "a+"}}]},
            r"arms\.r\.control\.regex: it needs backend='vllm'",
        ),
        ({"slot": {"workspace_mb": 1}, "model": "VOCABULARY"}, "workspace_mb=1: too small"),
    ],
)
def test_what_it_cannot_do(
    settings: dict[str, Any], message: str, start: Any, tiny_models: Any
) -> None:
    if settings.get("model"):
        settings = {**settings, "model": tiny_models("llama", True, 300_000)}
    with pytest.raises(ConfigError, match=message):
        start(**settings)


def test_a_prompt_that_slot_cannot_learn_from(start: Any) -> None:
    asked = request("one", [5, 6, 7], extra_args={**SLOT, "slot_loss_tokens": "assistant"})
    with pytest.raises(RunFailed, match=r"one: slot\.loss_tokens='assistant'"):
        ask(start(), asked)


def test_a_run(run_main: RunMain, write_config: WriteConfig, tmp_path: Path) -> None:
    """The published GSM8K run, and that an interrupted one is resumed."""
    data = tmp_path / "problems.jsonl"
    rows = [{"question": f"How much is 2 and {i}?", "answer": f"#### {2 + i}"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [{"name": "published:gsm8k", "data": str(data)}]
    path = write_config(backend="transformers", engine=ENGINE, tasks=tasks)
    output = tmp_path / "run"
    assert run_main("--config", path, "--output-dir", output) == 0
    results = json.loads((output / "results.json").read_text())
    assert results["config"]["backend"] == "transformers"
    [baseline, slot] = results["arms"]
    assert list(slot["metrics"])[:2] == ["answer", "format"]
    assert slot["last_loss"] < slot["first_loss"]
    assert baseline["first_loss"] is None
    [inspection] = json.loads((output / "inspection.json").read_text())
    assert inspection["problems"] == 3
    samples = output / "samples.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:2]))
    (output / "results.json").unlink()
    assert run_main("--config", path, "--output-dir", output, "--resume") == 0
    again = [json.loads(line) for line in samples.read_text().splitlines()]
    before = [json.loads(line) for line in lines]
    assert [one["completion"] for one in again] == [one["completion"] for one in before]


def test_answers_are_those_of_vllm(
    run_main: RunMain, write_config: WriteConfig, tmp_path: Path
) -> None:
    tasks = [{"name": "aime24", "data": str(PROBLEMS), "max_samples": 3}]
    completions = []
    for backend, engine in (
        ("vllm", {**ENGINE, "enforce_eager": True, "kv_cache_memory_bytes": 2**28}),
        ("transformers", ENGINE),
    ):
        path = write_config(backend=backend, engine=engine, tasks=tasks, inspect=False)
        output = tmp_path / backend
        assert run_main("--config", path, "--output-dir", output) == 0
        lines = (output / "samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        # vLLM leaves out the bytes of a character that the limit cut in two.
        texts = {(s["arm"], s["id"]): s["completion"].rstrip("\ufffd") for s in samples}
        completions.append(texts)
    assert completions[0] == completions[1]
