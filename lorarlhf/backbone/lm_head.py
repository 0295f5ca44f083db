"""The LM head of a base, and a check that its logits are computed as the family computes them."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch

from lorarlhf.backbone import trunk
from lorarlhf.backbone.kernels.dequantised import input_gradient
from lorarlhf.backbone.structure import decoder_of
from lorarlhf.runtime.errors import UserError

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


class LMHead:
    """The frozen LM head of a causal language model. V is the vocabulary, H the hidden size.

    Args:
        model: the causal language model.
        base: its name, for messages.
    """

    def __init__(self, model: Any, base: str) -> None:
        self._model, self._base = model, base

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (V, H)."""
        return self._model.get_output_embeddings().weight

    @property
    def products(self) -> tuple[Product, Product] | None:
        """`x W^T` and `g W` with the packed weight, while `Backbone.dequantised` keeps one."""
        head = self._model.get_output_embeddings()
        if "packed_backward" not in head.__dict__:
            return None
        return head, partial(input_gradient, head)

    @property
    def softcap(self) -> float | None:
        """The family's cap on logits (Gemma 2), if it has one."""
        return getattr(self._model.config.get_text_config(), "final_logit_softcapping", None)

    @torch.no_grad()
    def check(self) -> None:
        """Check on a few tokens that `weight` and `softcap` give the family's own logits.

        Call it with the adapters switched off.

        Raises:
            UserError: the family scales its logits in a way that is not known here (Granite,
                Cohere).
        """
        ids = torch.arange(8, device=self.weight.device)[None]
        own = self._model(input_ids=ids).logits.float()
        inputs = trunk.padded_inputs(ids, torch.ones_like(ids))
        hidden = trunk.run_decoder(decoder_of(self._model), inputs)
        ours = (hidden[0] @ self.weight.T).float()
        ours = self.softcap * torch.tanh(ours / self.softcap) if self.softcap else ours
        if not torch.allclose(ours, own[0], rtol=0.05, atol=0.05):
            raise UserError(
                f"{self._base} is of the family {self._model.config.model_type}, which changes its "
                "logits in a way that PPO here does not know, and would be trained wrongly. Use "
                "DPO or ORPO, or another base."
            )
