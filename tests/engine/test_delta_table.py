import torch

from slot_vllm.engine.worker.delta_table import DeltaTable
from slot_vllm.optim.head import Head


def test_a_row_holds_nothing_of_the_request_before() -> None:
    head = Head(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    table, delta = DeltaTable(2, head), torch.ones(1, 3)
    table.fill([1], delta, [False], head)
    table.fill([1], delta, [True], head)
    assert table.rounded[1].any() and not table.biases[1].any()
    table.fill([1], delta, [False], head)
    assert table.biases[1].any() and not table.rounded[1].any()


def test_a_step_s_rows_stay_when_another_is_needed() -> None:
    table = DeltaTable(2, Head(torch.zeros(7, 3)))
    rows = [table.assign(name, ()) for name in "ab"]
    assert sorted(rows) == [1, 2]
    assert table.assign("c", {"a", "c"}) == rows[1]
    assert [table.row(name) for name in "abc"] == [rows[0], None, rows[1]]
