"""Tiny GGUF files with random weights, and made-up wheels that hold them."""

import base64
import hashlib
import zipfile
from pathlib import Path

import gguf
import numpy as np

from slot_vllm.evaluation.models.catalog import Model, Wheel

# vLLM on a CPU wants heads of 32.
D, LAYERS, HEADS, KV_HEADS, INNER = 128, 2, 4, 2, 96
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def _bytes() -> list[str]:
    """GPT-2's printable characters for the 256 bytes, in the bytes' order."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


TOKENS = [*SPECIAL, *_bytes(), "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]


def write_gguf(
    path: Path, architecture: str = "llama", untied: bool = False, without: str = ""
) -> None:
    """A model in Q8_0, norms and biases in float32. without: a tensor to leave out."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(D)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    if architecture == "llama":
        writer.add_rope_dimension_count(D // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if architecture == "llama" else "qwen2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, shape in _shapes(architecture, untied).items():
        if name != without:
            _add(writer, name, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shapes(architecture: str, untied: bool) -> dict[str, tuple[int, ...]]:
    kv = D * KV_HEADS // HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), D)}
    if untied:
        shapes["output.weight"] = (len(TOKENS), D)
    for layer in range(LAYERS):
        rows = {"attn_q": D, "attn_k": kv, "attn_v": kv}
        parts: dict[str, tuple[int, ...]] = {f"{n}.weight": (m, D) for n, m in rows.items()}
        if architecture == "qwen2":
            parts |= {f"{name}.bias": (count,) for name, count in rows.items()}
        parts |= {"attn_output.weight": (D, D), "attn_norm.weight": (D,), "ffn_norm.weight": (D,)}
        parts |= {"ffn_up.weight": (INNER, D), "ffn_gate.weight": (INNER, D)}
        parts["ffn_down.weight"] = (D, INNER)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    shapes["output_norm.weight"] = (D,)
    return shapes


def _add(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(len(name) + shape[0]).normal(0, 0.05, shape)
    values = values.astype(np.float32)
    if len(shape) == 1:
        writer.add_tensor(name, values)
        return
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def write_wheel(directory: Path, package: str, member: str, content: bytes) -> Wheel:
    """A wheel that pip takes, with one data file; and what the catalog says of it."""
    module = package.replace("-", "_")
    path = directory / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    files = {
        member: content,
        # Nothing of a wheel may be run.
        f"{module}/__init__.py": b"raise SystemExit('the wheel was imported')\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
    }
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Wheel(package, "1.0", member, path.stat().st_size, sha256)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def write_model(directory: Path, parts: int = 2, without: str = "") -> Model:
    """A tiny Llama as wheels in ``directory``, cut in so many parts."""
    file = directory / "tiny.gguf"
    write_gguf(file, without=without)
    content = file.read_bytes()
    file.unlink()
    size = -(-len(content) // parts)
    wheels = tuple(
        write_wheel(
            directory,
            f"tiny-part{part}",
            f"tiny_part{part}/part.bin",
            content[part * size : (part + 1) * size],
        )
        for part in range(parts)
    )
    return Model("tiny", "example/Tiny", "MIT", "Q8_0", ("<|im_end|>",), 100_000, wheels)
