"""Cross-entropy of a frozen head's logits, a piece at a time: all logits are never there at once.

With a vocabulary of 50,000 the logits of a step are larger than everything else in it, and the computer is busy moving
them. The gradient is computed along with the loss, while a piece of them is at hand.
"""

from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        rows = max(_LOGITS_AT_ONCE[hidden.device.type] // len(weight), 1)
        for start in range(0, len(hidden), rows):
            here = slice(start, start + rows)
            logits = torch.nn.functional.linear(hidden[here].to(weight.dtype), weight, bias).float()
            logprobs = torch.log_softmax(logits, -1)
            following = labels[here, None]
            loss -= logprobs.gather(-1, following).sum()
            if gradient is not None:
                surprise = logprobs.exp_().scatter_add_(
                    -1, following, torch.full_like(following, -1.0, dtype=logprobs.dtype)
                )
                gradient[here] = (surprise.to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, None, None, None]:
        return ctx.gradient * grad_outputs[0], None, None, None


def head_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The sum over all positions. hidden [positions, size], weight [vocabulary, size], labels [positions].

    Differentiable in `hidden` only, and once.
    """
    loss: Tensor = _HeadLoss.apply(hidden, weight, bias, labels)  # type: ignore[no-untyped-call]
    return loss
