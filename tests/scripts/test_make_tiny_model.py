"""In processes of their own: transformers' models imported here would disturb vLLM's."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT

# Directories in, what one sees of their models out.
LOOK = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "Größe: 2³ = 8\\n\\t∑ 好"
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]

def look(path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    head = model.get_output_embeddings().weight
    prompt = tokenizer(TEXT, return_tensors="pt").input_ids
    output = model.generate(prompt, max_new_tokens=32, do_sample=False)[0, prompt.shape[1] :]
    return {
        "architecture": model.config.model_type,
        "tied": head.data_ptr() == model.get_input_embeddings().weight.data_ptr(),
        "vocabulary": len(head),
        "soft_cap": getattr(model.config, "final_logit_softcapping", None),
        "round_trip": tokenizer.decode(prompt[0]) == TEXT,
        "chat": tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True),
        "distinct": len(set(output.tolist())),
    }

print(json.dumps([look(path) for path in sys.argv[1:]]))
"""

# The script's own command line, several times in one process.
MAKE = """
import json, sys
import make_tiny_model

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["make_tiny_model.py", *arguments]
    make_tiny_model.main()
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(directory: str | Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def test_the_models(tiny_models: Callable[[str, bool], str]) -> None:
    kinds = [("qwen2", True, None), ("llama", False, None), ("gemma2", True, 10.0)]
    models = [tiny_models(architecture, tied) for architecture, tied, _ in kinds]
    looks = json.loads(python(LOOK, *models).splitlines()[-1])
    assert [(look["architecture"], look["tied"], look["soft_cap"]) for look in looks] == kinds
    for look in looks:
        assert look["vocabulary"] % 64 != 0
        assert look["round_trip"]
        assert look["chat"] == "<|system|>Be brief.<|end|><|user|>1+1?<|end|><|assistant|>"
        assert look["distinct"] > 4  # not one token over and over


def test_the_seed_decides_and_an_existing_model_stays(tiny_model: str, tmp_path: Path) -> None:
    model, other = (str(tmp_path / "made" / name) for name in ("model", "other"))
    said = python(MAKE, json.dumps([[model], [model, "--seed", "1"], [other, "--seed", "1"]]))
    assert f"{model} is there already" in said
    assert contents(model) == contents(tiny_model)
    assert contents(other)["model.safetensors"] != contents(model)["model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["model", "other"]
