"""ORPO whose steps do not depend on the size of a forward, and whose answers end once."""

from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from lorarlhf.backbone.tokenizer import turn_end

_Trainer: Any = object  # TRL's ORPOTrainer follows in the order of classes


class ORPOMixin(_Trainer):
    """Replaces two things in TRL's ORPOTrainer.

    TRL's likelihood term is a mean over the tokens of a forward, so that a step changes with
    `micro_batch_size`. Here it is each answer's own mean, and the mean of those over the pairs, as
    the expectation in the paper is (arXiv 2403.07691, equation 6). With one pair in a forward both
    are the same.

    TRL adds an EOS to each answer, also where the chat template has ended it already.
    """

    def concatenated_forward(self, model: Any, batch: dict[str, Any]) -> tuple[Any, ...]:
        """TRL's figures of both answers; the likelihood term is a mean over pairs."""
        found = list(super().concatenated_forward(model, batch))
        found[4] = None  # frees TRL's term and its graph before ours is made
        ids, mask = batch["chosen_input_ids"], batch["chosen_attention_mask"]
        logits = found[2][:, : ids.shape[1] - 1]  # (pairs, tokens - 1, vocabulary)
        found[4] = mean_of_means(logits, ids[:, 1:], mask[:, 1:])
        return tuple(found)

    @cached_property
    def _turn_end(self) -> int | None:
        return turn_end(self.processing_class)

    def tokenize_row(self, feature: dict[str, Any], model: Any = None) -> dict[str, Any]:
        """TRL's tokens of a pair, without an EOS behind one that ends a turn."""
        row = super().tokenize_row(feature, model)
        tokenizer = self.processing_class
        end = self._turn_end
        for name in ("chosen", "rejected"):
            ids, text = row[f"{name}_input_ids"], feature[name]
            added = ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token)
            if end is None or not added or len(ids) >= self.max_length:  # TRL may have cut it
                continue
            if text.rstrip().endswith(tokenizer.convert_ids_to_tokens([end])[0]):
                for part in ("input_ids", "attention_mask", "labels"):
                    row[f"{name}_{part}"] = row[f"{name}_{part}"][:-1]
        return row


def mean_of_means(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over rows of each row's mean negative log-likelihood.

    Args:
        logits: (B, T, V); ids: (B, T), the tokens that follow; mask: (B, T), 1 where one counts.
    """
    losses = functional.cross_entropy(logits.transpose(1, 2), ids, reduction="none")
    return ((losses * mask).sum(1) / mask.sum(1)).mean()
