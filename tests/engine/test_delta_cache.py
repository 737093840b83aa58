from types import SimpleNamespace

import torch

from slot_vllm.engine.wire.prompt_key import prompt_key
from slot_vllm.engine.worker.delta_cache import DeltaCache
from slot_vllm.optim.optimize import Learned
from slot_vllm.params import SlotParams


def learned(value: float) -> Learned:
    return Learned(torch.full((100,), value), torch.zeros(2), torch.ones((), dtype=torch.bool))


def test_the_least_recently_used_goes_first() -> None:
    cache = DeltaCache(1300, 100, torch.device("cpu"))
    assert cache.capacity == 3
    for i, name in enumerate((b"a", b"b", b"c")):
        cache.put(name, learned(i))
    held = cache.get(b"a")
    assert held is not None
    for i, name in enumerate((b"d", b"e", b"f")):
        cache.put(name, learned(10.0 + i))
        assert len(cache) == 3
        if name == b"d":
            assert [cache.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    # What a request has stays its own.
    assert torch.equal(held.delta, torch.zeros(100))
    newest = cache.get(b"f")
    assert newest is not None and torch.equal(newest.delta, torch.full((100,), 12.0))
    cache.clear()
    assert cache.get(b"f") is None
    cache.put(b"g", learned(1.0))
    assert len(cache) == 1


def test_without_room_nothing_is_kept() -> None:
    cache = DeltaCache(0, 100, torch.device("cpu"))
    cache.put(b"a", learned(1.0))
    assert cache.get(b"a") is None


def test_what_a_key_tells_apart() -> None:
    def lora(name: str = "x", number: int = 1, path: str = "/x") -> SimpleNamespace:
        return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=path)

    params = SlotParams()
    different = [
        prompt_key([1, 2, 3], 0, params, None, None, (0, 0)),
        prompt_key([1, 2, 3], 1, params, None, None, (0, 0)),
        prompt_key([1, 2, 4], 0, params, None, None, (0, 0)),
        prompt_key([1, 2], 0, params, None, None, (0, 0)),
        prompt_key([1, 2, 3], 0, SlotParams(lr=0.2), None, None, (0, 0)),
        prompt_key([1, 2, 3], 0, SlotParams(preset="paper-vllm"), None, None, (0, 0)),
        prompt_key([1, 2, 3], 0, SlotParams(loss_tokens=2), None, None, (0, 0)),
        prompt_key([1, 2, 3], 0, params, None, "", (0, 0)),
        prompt_key([1, 2, 3], 0, params, None, "salt", (0, 0)),
        prompt_key([1, 2, 3], 0, params, lora(), None, (0, 0)),
        prompt_key([1, 2, 3], 0, params, lora("y"), None, (0, 0)),
        prompt_key([1, 2, 3], 0, params, lora(path="/y"), None, (0, 0)),
        prompt_key([1, 2, 3], 0, params, None, None, (1, 0)),
        prompt_key([1, 2, 3], 0, params, None, None, (0, 1)),
        prompt_key([1, 2, 3], 0, params, None, None, (0, 0), [("image", 1)]),
    ]
    assert len(set(different)) == len(different)
    for same in (SlotParams(), SlotParams(window=2), SlotParams(half_life=3.0)):
        assert prompt_key([1, 2, 3], 0, same, lora(), "salt", (0, 0)) == prompt_key(
            [1, 2, 3], 0, params, lora(), "salt", (0, 0)
        )
