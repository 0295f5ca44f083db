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
    def load(cls, votes: str | Path, backbone: Backbone) -> "ScoreDeviation":
        """The deviation of the backbone's reward role, by the votes that its run has kept.

        Args:
            votes: `votes.safetensors` in the run's folder.

        Raises:
            UserError: there is no such file, or the votes' states are not of this backbone.
        """
        check_pooling(backbone.heads["reward"].pooling, votes)
        fit = VoteFit.load(votes)
        width = state_width(backbone, "mean")
        if fit.chosen.shape[1] != width:
            raise UserError(
                f"The votes in {votes} have {fit.chosen.shape[1]} features an answer, and this "
                f"base with its adapters has {width}. Train the reward role again, or set "
                "reward_pessimism to 0."
            )
        return cls.of(fit.posterior(), backbone.device)

    def __call__(self, states: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Deviations (B,) of the raw scores.

        Args:
            states: (B, F) pooled over an answer (`role.pool_states`).
            counts: (B,) how many tokens that were; short answers' scores are shrunk, and their
                deviations with them (`ScalarHead.pool`).
        """
        with torch.autocast(states.device.type, enabled=False):
            lengths = ((states.float() - self.offset) @ self.factor.T).norm(dim=1)
        return lengths * counts / (counts + SHRINK_TOKENS)


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
    head, place = backbone.heads["reward"], backbone.device
    encoded = [encode_answer(backbone, p, a) for p, a in zip(prompts, answers, strict=True)]
    states = torch.as_tensor(pooled_states(backbone, encoded), device=place)
    counts = torch.tensor([answer.end - answer.start for answer in encoded], device=place)
    if has_base_states(backbone):
        scores = head.score_pooled(states, counts).tolist()
    else:
        scores = score_encoded(backbone, encoded)
    return scores, deviation(states, counts).tolist()


def votes_of(adapter: Path) -> Path:
    """The votes of the run that a reward adapter is in."""
    return adapter.parent.parent / VOTES


def check_pooling(pooling: str, votes: str | Path) -> None:
    """Refuse a reward role whose scores have no deviation.

    Args:
        votes: where its votes should be.

    Raises:
        UserError: it scores the last token, or the file is missing.
    """
    if pooling != "mean":
        raise UserError(
            f"reward_pessimism needs a reward role with pooling mean, and this one has {pooling}: "
            "only a mean is scored by the fit whose doubt is known. Train it with --set "
            "pooling=mean, or set reward_pessimism to 0."
        )
    if not Path(votes).is_file():
        raise UserError(
            f"reward_pessimism needs the votes of the reward run, and there is no {votes}. Name "
            "the folder of a run of `lorarlhf reward`, or set reward_pessimism to 0."
        )
