"""The screen's figures are those of the oracle's delta on the model's own logits."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from slot_vllm.optim.head import Head
from slot_vllm.optim.optimize import Prompt
from slot_vllm.optim.oracle import oracle
from slot_vllm.params import SlotParams
from tests.conftest import ROOT
from tests.evaluation.finished_runs import finish

sys.path.insert(0, str(ROOT / "scripts"))
import screen_settings

MODEL = ROOT / "models/demo"
ANSWERS = {
    "baseline": "He has 3 + 4 = 7 apples. The answer is 7",
    "slot": "<think>3 + 4 = 7</think><answer>7</answer>",
}


def test_what_a_setting_does_to_stored_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    items = [
        {"problem": f"{n} and {7 - n} apples: how many?", "answer": "#### 7"} for n in range(1, 4)
    ]
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    run = finish(
        tmp_path / "run",
        lambda arm, number, gold: ANSWERS[arm],
        model=str(MODEL),
        system_prompt="Answer briefly.",
        tasks=[{"name": "published:gsm8k", "data": str(data)}],
    )
    settings = {
        "baseline": {"steps": 0},
        "window": {"steps": 3, "window": 2},
        "steps3": {"steps": 3},
    }
    plan = tmp_path / "settings.yaml"
    plan.write_text(yaml.safe_dump({"run": str(run), "problems": 2, "settings": settings}))
    found = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["screen_settings.py", str(plan), "--output", str(found)])
    screen_settings.main()
    result = json.loads(found.read_text())
    assert len(result["problems"]) == 2
    assert result["scores"]["baseline"]["opens"]["gain"] == 0

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()
    head = Head(model.get_output_embeddings().weight.detach())
    texts = []
    for problem in result["problems"]:
        chat = [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": items[int(problem)]["problem"]},
        ]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(ANSWERS["baseline"], add_special_tokens=False)
        answer.append(tokenizer.eos_token_id)
        with torch.no_grad():
            states = model(torch.tensor([prompt + answer]), output_hidden_states=True)
            hidden = states.hidden_states[-1][0]
            params = SlotParams(steps=3)
            delta = oracle(head, Prompt(hidden[: len(prompt)], torch.tensor(prompt), params)).delta
            rows = hidden[len(prompt) - 1 : -1].double() + delta
            log_p = (rows @ head.weight.double().T).log_softmax(dim=1)
        texts.append(log_p.gather(1, torch.tensor(answer).unsqueeze(1)).mean().item())
    assert result["scores"]["steps3"]["text"]["mean"] == pytest.approx(
        sum(texts) / len(texts), abs=2e-3
    )
    # Beyond the window the answer is as without SLOT.
    moved = {name: abs(result["scores"][name]["text"]["gain"]) for name in settings}
    assert 0 < moved["window"] < moved["steps3"]
