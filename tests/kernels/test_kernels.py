"""The inner loops against plain torch in float64."""

import pytest
import torch

from slot_vllm.kernels.adamw import AdamW, adamw_step
from slot_vllm.kernels.apply_delta import add_bias_rows
from slot_vllm.kernels.softmax_sums import add_softmax_sums


@pytest.mark.parametrize("soft_cap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("biased", [False, True])
def test_softmax_sums_are_the_gradient_of_the_losses(
    soft_cap: float | None, scale: float, biased: bool
) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(7, 33)
    bias = torch.randn(33) if biased else None
    targets = torch.tensor([0, 1, 1, 5, 32, 0, 0])
    sums, losses = torch.ones(33), torch.empty(7)
    scratch = torch.empty(2, 7, 33)
    add_softmax_sums(logits, bias, targets, soft_cap, scale, scratch, sums, losses)

    shift = torch.zeros(33, dtype=torch.float64, requires_grad=True)
    # An engine in the same process may have turned gradients off.
    with torch.enable_grad():
        z = logits.double() + shift + (0 if bias is None else bias.double())
        y = scale * (z if soft_cap is None else soft_cap * torch.tanh(z / soft_cap))
        expected = torch.nn.functional.cross_entropy(y, targets, reduction="none")
        expected.sum().backward()
    assert shift.grad is not None
    torch.testing.assert_close(sums.double() - 1, shift.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-5, atol=1e-5)


def test_adamw_is_torchs_for_each_vector() -> None:
    torch.manual_seed(0)
    settings = [(0.1, 0.9, 0.999, 1e-5, 1e-8), (1.0, 0.5, 0.8, 1e-2, 0.3), (0.0, 0.0, 0.0, 1e-8, 0)]
    state = AdamW.at_zero(torch.tensor(settings), 8)
    references = [torch.zeros(8, dtype=torch.float64, requires_grad=True) for _ in settings]
    optimizers = [
        torch.optim.AdamW([r], lr=s[0], betas=(s[1], s[2]), eps=s[3], weight_decay=s[4])
        for r, s in zip(references, settings, strict=True)
    ]
    for step in range(1, 6):
        gradient = torch.randn(3, 8)
        adamw_step(gradient, state, step)
        for i, (reference, optimizer) in enumerate(zip(references, optimizers, strict=True)):
            reference.grad = gradient[i].double()
            optimizer.step()
    expected = torch.stack([r.detach() for r in references])
    torch.testing.assert_close(state.parameter.double(), expected, rtol=1e-5, atol=1e-6)
    # The others stay as they are.
    before = state.parameter.clone()
    adamw_step(torch.ones(1, 8), state, 6)
    assert (state.parameter != before).any(dim=1).tolist() == [True, False, False]


def test_bias_rows_leave_row_zero_alone() -> None:
    logits = torch.tensor([[-0.0, 1.0], [2.0, 3.0], [4.0, float("-inf")]])
    before = logits.clone()
    table = torch.tensor([[0.0, 0.0], [10.0, 20.0]])
    add_bias_rows(logits, table, torch.tensor([0, 1, 0]))
    assert torch.equal(logits[1], torch.tensor([12.0, 23.0]))
    for i in (0, 2):
        assert torch.equal(logits[i].view(torch.int32), before[i].view(torch.int32))
    add_bias_rows(logits, table, torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.5, 0.25]))
    assert torch.equal(logits[0].view(torch.int32), before[0].view(torch.int32))
    assert logits[1:].tolist() == [[17.0, 33.0], [6.5, float("-inf")]]
