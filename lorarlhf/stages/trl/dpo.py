"""DPO with an SFT term that does not depend on the size of a forward, and its held-out loss."""

from typing import Any

import torch

_Trainer: Any = object  # TRL's DPOTrainer follows in the order of classes


class DPOMixin(_Trainer):
    """Replaces two things in TRL's DPOTrainer: the loss `sft`, and the loss of held-out pairs.

    TRL's SFT term is a mean over the tokens of a forward, so that a step changes with
    `micro_batch_size`. Here it is each chosen answer's own mean, and the mean of those over the
    pairs (arXiv 2404.19733, equation 1).

    The held-out loss is half of `apo_zero` (arXiv 2408.06266, equation 7), whatever the training's
    is: 0.5 at the start, and between 0 and 1 for every pair. The logistic loss is unbounded, and a
    few pairs that the policy confidently ranks wrong raise it while the policy gets better. Each
    answer counts for itself, so chosen answers that become far less likely raise the loss even
    where the rejected ones fall further.

    Attributes:
        sft_weight: of that term; 0 where the loss has none.
    """

    sft_weight = 0.0
    loss_types: list[str]
    loss_weights: list[float]
    use_weighting: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.use_weighting:  # TRL's option multiplies every term by the pair's weight
            return
        named = list(zip(self.loss_types, self.loss_weights, strict=True))
        self.sft_weight = sum(weight for name, weight in named if name == "sft")
        self.loss_types = [name for name, _ in named if name != "sft"]
        self.loss_weights = [weight for name, weight in named if name != "sft"]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's loss of the other kinds, plus the weighted SFT term; or the held-out loss."""
        if not self.model.training and {*self.loss_types} - {"sft"}:
            return self._held_out_loss(model, inputs, return_outputs)
        if not self.sft_weight:
            return super()._compute_loss(model, inputs, return_outputs)
        seen: list[torch.Tensor] = []

        def recorded(**given: Any) -> Any:
            outputs = model(**given)
            if not seen:  # the policy's log-probabilities (2B, T), the chosen answers' first
                seen.append(outputs.log_probs)
            return outputs

        found = super()._compute_loss(recorded, inputs, return_outputs)
        mask = inputs["completion_mask"][:, 1:].chunk(2)[0]
        losses = answer_losses(seen[0].chunk(2)[0][:, -mask.shape[1] :], mask)
        mode = "train" if self.model.training else "eval"
        gathered = self.accelerator.gather(losses.detach())
        self._metrics[mode]["sft_loss"].append(gathered.mean().item())
        term = self.sft_weight * losses.mean()
        return (found[0] + term, found[1]) if return_outputs else found + term

    def _held_out_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        own = self.loss_types, self.loss_weights, self.use_weighting
        self.loss_types, self.loss_weights, self.use_weighting = ["apo_zero"], [0.5], False
        try:
            return super()._compute_loss(model, inputs, return_outputs)
        finally:
            self.loss_types, self.loss_weights, self.use_weighting = own


def answer_losses(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean negative log-likelihood of each answer: (B, T) -> (B,).

    Args:
        mask: (B, T), 1 on the tokens of the answer.
    """
    return -(logprobs * mask).sum(1) / mask.sum(1).clamp(min=1)
