"""The standard deviation of every score of the reward role, by the votes of its run.

The posterior of the fit (`lorarlhf.rewards.posterior`) knows how much the votes say about an answer
with given pooled states of the base. Folded, it is one matrix product on the device of the rollout.

The states are the base's. A reward role whose adapter was not trained on top of the fit has the
same, so that its own forward gives both score and deviation. One whose adapter was trained has
other states, of which the votes' posterior knows nothing: there the base runs once more, and the
deviation is that of the fit to all votes (the training itself started from the fit to a part of
them). It is in that fit's unit. A trained head may spread its scores more or less, so there one
deviation is not one unit of the score, and what `reward_pessimism` should be has to be found anew.

Shapes: B answers, F features, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.roles import SHRINK_TOKENS
from lorarlhf.backbone.tokenizer import Prompt
from lorarlhf.rewards.posterior import Posterior
from lorarlhf.rewards.role import (
    Answer,
    encode_answer,
    pooled_states,
    score_encoded,
    state_width,
)
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError

VOTES = "votes.safetensors"


@dataclass(frozen=True)
class ScoreDeviation:
    """How unsure a raw score of the reward role is, from the answer's pooled states.

    Attributes:
        offset: (F,) the states of the average answer, whose score is 0 by definition.
        factor: (F, F); see `Posterior.folded`.
    """

    offset: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, posterior: Posterior, device: torch.device | str = "cpu") -> "ScoreDeviation":
        """A posterior in float32 on a device."""
        offset, factor = posterior.folded()
        like: dict[str, Any] = {"dtype": torch.float32, "device": device}
        return cls(torch.tensor(offset, **like), torch.tensor(factor, **like))

    @classmethod
    def load(
        cls, votes: str | Path, backbone: Backbone, setting: str = "reward_pessimism"
    ) -> "ScoreDeviation":
        """The deviation of the backbone's reward role, by the votes that its run has kept.

        Args:
            votes: `votes.safetensors` in the run's folder.
            setting: that needs it, for messages.

        Raises:
            UserError: there is no such file, or the votes' states are not of this backbone.
        """
        check_pooling(backbone.heads["reward"].pooling, votes, setting)
        fit = VoteFit.load(votes)
        width = state_width(backbone, "mean")
        if fit.chosen.shape[1] != width:
            raise UserError(
                f"The votes in {votes} have {fit.chosen.shape[1]} features an answer, and this "
                f"base with its adapters has {width}. Train the reward role again, or set "
                f"{setting} to 0."
            )
        return cls.of(fit.posterior(), backbone.device)

    def __call__(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Deviations (B,) of the raw scores.

        Args:
            states: (B, F) pooled over an answer (`role.pool_states`).
            counts: (B,) how many tokens that were; short answers' scores are shrunk, and their
                deviations with them (`ScalarHead.pool`).
        """
        return self.vectors(states, counts).norm(dim=1)

    def vectors(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Vectors (B, F): the length of one is the deviation of the score.

        A score is linear in the weights, so the length of the difference of two of them is the
        deviation of the difference of the two scores.
        """
        with torch.autocast(states.device.type, enabled=False):
            found = (states.float() - self.offset) @ self.factor.T
        return found * (counts / (counts + SHRINK_TOKENS))[:, None]


def has_base_states(backbone: Backbone) -> bool:
    """Whether the reward role's states are the base's, as they are until its adapter trains."""
    return backbone.same_below("reward", "base", backbone.split + backbone.adapter_layers)


@torch.no_grad()
def score_with_deviations(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    deviation: ScoreDeviation,
) -> tuple[list[float], list[float]]:
    """Raw scores of the reward role for texts, and their deviations."""
    scores, vectors = score_with_vectors(backbone, prompts, answers, deviation)
    return scores, vectors.norm(dim=1).tolist()


@torch.no_grad()
def score_with_vectors(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    answers: Sequence[Answer],
    deviation: ScoreDeviation,
) -> tuple[list[float], torch.Tensor]:
    """Raw scores of the reward role for texts, and their `ScoreDeviation.vectors` (B, F)."""
    head, place = backbone.heads["reward"], backbone.device
    encoded = [encode_answer(backbone, p, a) for p, a in zip(prompts, answers, strict=True)]
    states = torch.as_tensor(pooled_states(backbone, encoded), device=place)
    counts = torch.tensor([answer.end - answer.start for answer in encoded], device=place)
    if has_base_states(backbone):
        scores = head.score_pooled(states, counts).tolist()
    else:
        scores = score_encoded(backbone, encoded)
    return scores, deviation.vectors(states, counts)


def votes_of(adapter: Path) -> Path:
    """The votes of the run that a reward adapter is in."""
    return adapter.parent.parent / VOTES


def check_pooling(pooling: str, votes: str | Path, setting: str = "reward_pessimism") -> None:
    """Refuse a reward role whose scores have no deviation.

    Args:
        votes: where its votes should be.
        setting: that needs the deviation.

    Raises:
        UserError: it scores the last token, or the file is missing.
    """
    if pooling != "mean":
        raise UserError(
            f"{setting} needs a reward role with pooling mean, and this one has {pooling}: only a "
            "mean is scored by the fit whose doubt is known. Train it with --set pooling=mean, or "
            f"set {setting} to 0."
        )
    if not Path(votes).is_file():
        raise UserError(
            f"{setting} needs the votes of the reward run, and there is no {votes}. Name the "
            f"folder of a run of `lorarlhf reward`, or set {setting} to 0."
        )
