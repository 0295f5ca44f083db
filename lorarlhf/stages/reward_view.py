"""Preference pairs as the reward role reads them, and the role in the shape TRL trains."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lorarlhf.backbone.base import Backbone
from lorarlhf.rewards.role import EncodedAnswer, encode_answer
from lorarlhf.runtime.terminal import progress_bar
from lorarlhf.stages.conversations import Row


@dataclass
class Pair:
    """One preference pair, encoded: answers share the prompt, `group` names it."""

    chosen: EncodedAnswer
    rejected: EncodedAnswer
    group: str
    margin: float = 0.0


def encode_pairs(backbone: Backbone, rows: Sequence[Row], pooling: str) -> list[Pair]:
    """Token ids of both answers of each row, behind the prompt in the policy's own format.

    Args:
        rows: as `conversational` gives them.
    """
    pairs = []
    with progress_bar("reading pairs", len(rows)) as advance:
        for row in rows:
            chosen, rejected = (
                encode_answer(backbone, row["prompt"], row[name], pooling)
                for name in ("chosen", "rejected")
            )
            margin = float(row.get("margin") or 0.0)
            pairs.append(Pair(chosen, rejected, repr(row["prompt"]), margin))
            advance(1)
    return pairs


def answers_of(pairs: Sequence[Pair]) -> list[EncodedAnswer]:
    """Both answers of each pair: chosen, rejected, chosen, ..."""
    return [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]


class RewardView(nn.Module):
    """The backbone's reward role in the shape that TRL's `RewardTrainer` trains.

    Its forward pools over the answer's tokens, which the collator marks; nothing is copied.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model, self.head = backbone.model, backbone.heads["reward"]
        self.config: Any = copy.deepcopy(backbone.causal.config)
        self.config.num_labels = 1
        self.__dict__["backbone"] = backbone  # not a module

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_mask: torch.Tensor,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Ids and masks (B, T) -> logits (B, 1)."""
        backbone = self.__dict__["backbone"]
        trunk = backbone.forward.trunk(input_ids, attention_mask)
        hidden = backbone.forward.hidden(input_ids, attention_mask, trunk)
        return SequenceClassifierOutput(logits=self.head.pool(hidden, answer_mask, trunk)[:, None])

    def add_model_tags(self, tags: Any) -> None:
        """TRL tags models for the hub; this view is never saved."""

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same by the name that older transformers call."""
        self.__dict__["backbone"].causal.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Pass the trainer's request on to the base."""
        self.__dict__["backbone"].causal.activation_checkpointing_enable(**kwargs)


def columns(pair: Pair) -> Row:
    """A pair as a row of the dataset."""
    return {
        "chosen_ids": pair.chosen.ids,
        "rejected_ids": pair.rejected.ids,
        "chosen_span": [pair.chosen.start, pair.chosen.end],
        "rejected_span": [pair.rejected.start, pair.rejected.end],
        "margin": pair.margin,
    }


class PairCollator:
    """Rows of `columns` -> ids and masks, all chosen answers first, then all rejected ones."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        answers = [
            EncodedAnswer(row[f"{side}_ids"], *row[f"{side}_span"])
            for side in ("chosen", "rejected")
            for row in rows
        ]
        ids, attention, answer_mask = EncodedAnswer.batch(answers, self.pad_id, torch.device("cpu"))
        margin = torch.tensor(
            [row["margin"] for row in rows], dtype=torch.float32, device=ids.device
        )
        masks = {"attention_mask": attention, "answer_mask": answer_mask}
        return {"input_ids": ids, **masks, "margin": margin}
