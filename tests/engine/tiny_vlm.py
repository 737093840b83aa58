"""A tiny random Idefics3 around a tiny Llama: what it makes of text is that model's own answer."""

import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
)
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

# An image's pixels in each direction, a patch's, and how many patches in each direction make a
# token.
SIZE, PATCH, SCALE = 32, 4, 2
IMAGE_TOKENS = (SIZE // PATCH // SCALE) ** 2
# Of the language model: the tokenizer's own and the mark around an image. The token that stands for
# an image is none of them, as in some published models.
VOCABULARY = 263
IMAGE_TOKEN = VOCABULARY


def make_tiny_vlm(language: Path, directory: Path) -> None:
    """Write it to ``directory``, whole or not at all. language: a Llama of
    ``scripts/make_tiny_model.py``."""
    tokenizer = AutoTokenizer.from_pretrained(language)
    marks = ["<fake_token_around_image>", "<image>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    assert tokenizer.convert_tokens_to_ids(marks) == [VOCABULARY - 1, IMAGE_TOKEN]
    text = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    assert text.config.vocab_size == VOCABULARY
    torch.manual_seed(0)
    vision = Idefics3VisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=text.config,
        image_token_id=IMAGE_TOKEN,
        scale_factor=SCALE,
        pad_token_id=text.config.pad_token_id,
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config).float()
    model.model.text_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    # With transformers' own all images are alike.
    torch.nn.init.normal_(model.model.connector.modality_projection.proj.weight, std=0.3)
    size = {"longest_edge": SIZE}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size, do_image_splitting=False)
    with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
        whole = Path(temporary) / "model"
        model.save_pretrained(whole)
        Idefics3Processor(images, tokenizer, IMAGE_TOKENS).save_pretrained(whole)
        whole.rename(directory)


if __name__ == "__main__":
    make_tiny_vlm(Path(sys.argv[1]), Path(sys.argv[2]))
