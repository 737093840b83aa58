from types import SimpleNamespace

import torch

from slot_vllm.engine.delta_cache import DeltaCache, prompt_key
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams


def learned(size: int) -> Learned:
    return Learned(torch.zeros(size), torch.zeros(0), torch.ones((), dtype=torch.bool))


def test_the_least_recently_used_goes_first() -> None:
    cache = DeltaCache(3 * (400 + 512))
    for name in (b"a", b"b", b"c"):
        cache.put(name, learned(100))
    assert cache.get(b"a") is not None
    cache.put(b"d", learned(100))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    assert cache.bytes <= 3 * (400 + 512)
    # One that fits nowhere is not kept, and neither is anything else.
    cache.put(b"large", learned(10000))
    assert (len(cache), cache.bytes) == (0, 0)


def test_what_a_key_tells_apart() -> None:
    def lora(name: str = "x", number: int = 1, path: str = "/x") -> SimpleNamespace:
        return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)

    params = SlotParams()
    different = [
        prompt_key([1, 2, 3], params, None, None, 0),
        prompt_key([1, 2, 4], params, None, None, 0),
        prompt_key([1, 2], params, None, None, 0),
        prompt_key([1, 2, 3], SlotParams(lr=0.2), None, None, 0),
        prompt_key([1, 2, 3], params, None, "", 0),
        prompt_key([1, 2, 3], params, None, "salt", 0),
        prompt_key([1, 2, 3], params, lora(), None, 0),
        prompt_key([1, 2, 3], params, lora("y"), None, 0),
        prompt_key([1, 2, 3], params, lora(path="/y"), None, 0),
        prompt_key([1, 2, 3], params, None, None, 1),
    ]
    assert len(set(different)) == len(different)
    assert prompt_key([1, 2, 3], SlotParams(), lora(), "salt", 0) == prompt_key(
        [1, 2, 3], SlotParams(), lora(), "salt", 0
    )
