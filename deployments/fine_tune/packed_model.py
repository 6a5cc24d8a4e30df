"""A language model as it is trained here: packed sequences in, their loss out.

Not every architecture tells documents apart by their positions, nor computes its logits by a linear head alone. So
what a model can do is tried out, and what it cannot is done in the way that always works.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from deployments.fine_tune.dataset import IGNORED
from deployments.fine_tune.head_loss import head_loss
from deployments.fine_tune.packed_attention import NAME, document_lengths

logger = logging.getLogger(__name__)


class PackedModel(nn.Module):
    """Wraps a causal language model of transformers, with an adapter in it or without.

    together: whether documents can share a sequence. Told by their positions, they do not see each other then.
    longest: tokens of the longest document that will come.
    """

    accepts_loss_kwargs = True

    def __init__(self, model: Any, *, longest: int) -> None:
        super().__init__()
        was_training = model.training
        model.eval()
        with torch.no_grad():
            self.together = _tells_documents_apart(model)
            self._has_plain_head = _has_plain_head(model)
            self._has_packed_attention = self.together and _switch_to_packed_attention(model, longest)
        model.train(was_training)
        if not self.together:
            logger.info("%s does not tell packed documents apart: each has a sequence of its own", type(model).__name__)
        self.model = model

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """loss: the sum over the labels other than IGNORED, divided by `num_items_in_batch`; None: by their number.

        labels: the token that follows, at each position.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if self.together:
            inputs["position_ids"] = position_ids
        if self._has_packed_attention:
            inputs["lengths"] = document_lengths(position_ids)
        labelled = labels != IGNORED
        if self._has_plain_head:
            hidden = self.model.get_decoder()(**inputs).last_hidden_state
            head = self.model.get_output_embeddings()
            loss = head_loss(hidden[labelled], head.weight, head.bias, labels[labelled])
        else:
            logits = self.model(**inputs).logits[labelled]
            loss = nn.functional.cross_entropy(logits.float(), labels[labelled], reduction="sum")
        return {"loss": loss / (labelled.sum() if num_items_in_batch is None else num_items_in_batch)}


def _tells_documents_apart(model: Any) -> bool:
    """Whether two documents in one sequence have the logits that they have alone."""
    documents = [_some_tokens(model, 6), _some_tokens(model, 9)]

    def difference() -> float:
        alone = [model(input_ids=ids, use_cache=False).logits for ids in documents]
        return _relative_difference(_packed_logits(model, documents), torch.cat(alone, 1))

    return _is_small(difference, model)


def _switch_to_packed_attention(model: Any, longest: int) -> bool:
    """Makes the model use it if that gives its own results, with documents of this length too."""
    if model.device.type != "cpu" or not model._supports_attention_backend:
        return False
    documents = [_some_tokens(model, longest), _some_tokens(model, 9)]
    own_attention = model.config._attn_implementation
    expected = _packed_logits(model, documents)
    model.set_attn_implementation(NAME)
    lengths = [longest, 9]
    if _is_small(lambda: _relative_difference(_packed_logits(model, documents, lengths=lengths), expected), model):
        return True
    model.set_attn_implementation(own_attention)
    return False


def _packed_logits(model: Any, documents: list[Tensor], **options: Any) -> Tensor:
    positions = torch.cat([torch.arange(ids.shape[1], device=model.device) for ids in documents])[None]
    logits: Tensor = model(input_ids=torch.cat(documents, 1), position_ids=positions, use_cache=False, **options).logits
    return logits


def _has_plain_head(model: Any) -> bool:
    """Whether the logits are a linear function of what the decoder returns, and nothing is done to them."""
    ids = _some_tokens(model, 5)

    def difference() -> float:
        head = model.get_output_embeddings()
        logits = nn.functional.linear(
            model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state, head.weight, head.bias
        )
        return _relative_difference(logits, model(input_ids=ids, use_cache=False).logits)

    return _is_small(difference, model)


def _is_small(difference: Callable[[], float], model: Any) -> bool:
    """Whether it is within the model's precision; a model that cannot be called so is different."""
    try:
        # Models compute some things in float32 whatever their own precision is.
        tolerance: float = 16 * max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps) ** 0.75
        return difference() <= tolerance
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        logger.info("%s is trained in the plain way: %s", type(model).__name__, error)
        return False


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _some_tokens(model: Any, count: int) -> Tensor:
    vocab_size = model.get_output_embeddings().weight.shape[0]
    return torch.tensor([[(7 * count + 11 * index) % vocab_size for index in range(count)]], device=model.device)
