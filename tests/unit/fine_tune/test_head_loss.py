"""The loss in pieces is the loss, and so is its gradient."""

import pytest
import torch

from deployments.fine_tune import head_loss as module
from deployments.fine_tune.head_loss import head_loss


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("at_once", [1, 37 * 3, 10**6])
def test_equals_cross_entropy(with_bias: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._LOGITS_AT_ONCE, "cpu", at_once)
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(10, 8, generator=generator, requires_grad=True)
    weight = torch.randn(37, 8, generator=generator)
    bias = torch.randn(37, generator=generator) if with_bias else None
    labels = torch.randint(37, (10,), generator=generator)

    loss = head_loss(hidden, weight, bias, labels)
    (gradient,) = torch.autograd.grad(loss * 0.5, hidden)

    expected = torch.nn.functional.cross_entropy(
        torch.nn.functional.linear(hidden, weight, bias), labels, reduction="sum"
    )
    (expected_gradient,) = torch.autograd.grad(expected * 0.5, hidden)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_hopeless_tokens_have_a_finite_loss() -> None:
    hidden, weight = torch.full((1, 1), 1000.0), torch.tensor([[1.0], [-1.0]])

    assert head_loss(hidden, weight, None, torch.tensor([1])).item() == pytest.approx(2000.0)


def test_nothing_labelled_is_no_loss() -> None:
    assert head_loss(torch.zeros(0, 4), torch.ones(5, 4), None, torch.zeros(0, dtype=torch.long)).item() == 0
