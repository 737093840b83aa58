"""A converted directory holds what transformers reads from the GGUF file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.models import conversion, memory
from tests.evaluation.models.tiny import write_gguf


def convert(file: Path, directory: Path) -> list[float]:
    directory.mkdir()
    shares: list[float] = []
    conversion.convert(file, directory, ["<|im_end|>", "<|endoftext|>"], shares.append)
    return shares


@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
@pytest.mark.parametrize(("architecture", "untied"), [("llama", False), ("qwen2", True)])
def test_weights_are_the_files_rounded_to_bf16(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    untied: bool,
    shard_bytes: int,
) -> None:
    monkeypatch.setattr(conversion, "SHARD_BYTES", shard_bytes)
    write_gguf(tmp_path / "tiny.gguf", architecture, untied)
    out = tmp_path / "out"
    shares = convert(tmp_path / "tiny.gguf", out)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    expected = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    files = sorted(out.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes < 1 << 30)
    stored = {name: w for file in files for name, w in load_file(file).items()}
    assert set(expected) - set(stored) == (set() if untied else {"lm_head.weight"})
    for name, weight in stored.items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    assert type(loaded).__name__ in json.loads((out / "config.json").read_text())["architectures"]
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name


def test_the_tokenizer_and_what_ends_an_answer(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    convert(tmp_path / "tiny.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.eos_token == "<|im_end|>"
    chat = [{"role": "user", "content": "the 12"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>the 12<|im_end|><|im_start|>"
    assert [tokenizer.decode(i) for i in tokenizer.encode(text)] == [
        *["<|im_start|>", "t", "he", " ", "1", "2", "<|im_end|>", "<|im_start|>"]
    ]
    # Every digit stands alone, with the space before it apart, as SmolLM's tokenizer has it.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("the  7")) == ["t", "he", "Ġ", "Ġ", "7"]
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  7")
    assert [part for part, _ in split] == ["a", "ĠĠ", "7"]
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 0]


def test_a_file_without_one_of_the_weights(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(RunFailed, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10**9)
    write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(RunFailed, match=r"1\.1 GB are needed; available: 1\.0 GB"):
        convert(tmp_path / "tiny.gguf", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
