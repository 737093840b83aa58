"""A GGUF file as an ordinary model directory: bf16 safetensors, configuration, tokenizer."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from slot_vllm.evaluation.errors import RunFailed
from slot_vllm.evaluation.models import memory

SHARD_BYTES = 1 << 30

# transformers reads the merges of a file's tokenizer, but not how text is split before them where
# that differs from GPT-2's. SmolLM's splits off every digit (`tokenizer.ggml.pre`).
_SPLITS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
}


def convert(
    file: Path, directory: Path, end_tokens: Sequence[str], on_share: Callable[[float], None]
) -> None:
    """Writes the model of a GGUF file into an existing directory, one tensor at a time.

    Weights are dequantized in float32 and rounded to bf16. ``on_share`` is called with the
    share of the weights that is done. Raises RunFailed for a file that does not hold the whole
    model, and where memory does not suffice.
    """
    reader = gguf.GGUFReader(file)
    largest = max(int(tensor.n_elements) for tensor in reader.tensors)
    memory.require(SHARD_BYTES + 2 * 4 * largest, f"the conversion of {file.name}", RunFailed)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    split = split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: 2 * int(tensor.n_elements),
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_BYTES,
    )
    names = _Names(reader, model)
    written: dict[str, str] = {}
    total = sum(int(tensor.n_elements) for tensor in reader.tensors)
    done = 0
    for shard, held in split.filename_to_tensors.items():
        weights = {}
        for tensor in map(tensors.__getitem__, held):
            name, weight = names.weight(tensor)
            weights[name] = weight
            written[name] = shard
            done += int(tensor.n_elements)
            on_share(done / total)
        save_file(weights, directory / shard, metadata={"format": "pt"})
    names.check_all(written)
    config.architectures = [type(model).__name__]
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": written}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    _write_settings(reader, file, directory, config, end_tokens)


class _Names:
    """The file's tensors under the names, and in the layout, of transformers' model.

    llama.cpp's Llama has the rows of its query and key projections in another order, which
    transformers' processor of the architecture undoes.
    """

    def __init__(self, reader: gguf.GGUFReader, model: Any) -> None:
        architecture = reader.fields["general.architecture"].contents()
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        self._processor = processor(config=model.config.to_dict())
        self._names = get_gguf_hf_weights_map(model, self._processor)
        self._shapes = {name: weight.shape for name, weight in model.state_dict().items()}
        self._tied = "lm_head.weight" if model.config.tie_word_embeddings else None

    def weight(self, tensor: gguf.ReaderTensor) -> tuple[str, torch.Tensor]:
        """One tensor's name and its weights in bf16."""
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        processed = self._processor.process(weights=values, name=tensor.name)
        name = self._names.get(processed.name)
        if name is None:
            raise RunFailed(f"the GGUF file's tensor {tensor.name} has no place in the model")
        weight = torch.tensor(processed.weights).to(torch.bfloat16)
        if weight.shape != self._shapes[name]:
            raise RunFailed(
                f"the GGUF file's tensor {tensor.name} is {list(weight.shape)}; {name} is "
                f"{list(self._shapes[name])}"
            )
        return name, weight

    def check_all(self, written: dict[str, str]) -> None:
        missing = set(self._shapes) - set(written) - {self._tied}
        if missing:
            raise RunFailed(f"the GGUF file has no weights for {', '.join(sorted(missing))}")


def _write_settings(
    reader: gguf.GGUFReader,
    file: Path,
    directory: Path,
    config: PretrainedConfig,
    end_tokens: Sequence[str],
) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    split = _SPLITS.get(reader.fields["tokenizer.ggml.pre"].contents())
    if split is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = split()
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(directory)
    ends = tokenizer.convert_tokens_to_ids(list(end_tokens))
    config.dtype = torch.bfloat16
    config._name_or_path = ""
    config.save_pretrained(directory)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=ends if len(ends) > 1 else ends[0],
        pad_token_id=config.pad_token_id,
    ).save_pretrained(directory)
