"""Rounds of new answers in the command `dpo`: which options go together, and the prompts."""

from typing import TYPE_CHECKING

from lorarlhf.cli.request import TrainRequest
from lorarlhf.project.lineage import SourceRun
from lorarlhf.project.settings import Settings
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json

if TYPE_CHECKING:
    from lorarlhf.backbone.base_files import BaseFiles
    from lorarlhf.cli.row_checks import Length
    from lorarlhf.project.stage import Row


def check_rounds(request: TrainRequest, settings: Settings, reward: SourceRun | None) -> bool:
    """Whether new answers are asked for, with all that they need.

    Args:
        reward: the run of the reward role.

    Raises:
        UserError: something that they need is missing, or is given where there are no rounds.
    """
    from lorarlhf.stages.round_inputs import ROUND_SETTINGS

    if not settings.own["rounds"]:
        given = sorted(ROUND_SETTINGS & settings.given)
        given += [f"--{name}" for name in ("prompts", "reward") if getattr(request, name)]
        if given:
            raise UserError(
                f"{given[0]} is for rounds of new answers that a reward role labels: add --set "
                "rounds=3, or leave it out."
            )
        return False
    if reward is None or request.prompts is None:
        raise UserError(
            "Rounds of new answers need prompts and a reward role: --prompts FILE and --reward "
            "RUN, or a project that has both."
        )
    if request.eval:
        raise UserError(
            "--eval is for votes alone: rounds of new answers are measured on held-out prompts."
        )
    if distributed.world_size() > 1:
        raise UserError("Rounds of new answers run in one process; several share DPO's own work.")
    if settings.own["num_generations"] < 2:
        raise UserError("num_generations is 2 or more: a pair is the best and the worst answer.")
    if settings.own["least_gap"]:
        from lorarlhf.rewards.deviation import check_pooling, votes_of

        note = read_json(reward.adapter / "lorarlhf.json")
        pooling = note.get("pooling", "mean" if note else "last")
        check_pooling(pooling, votes_of(reward.adapter), "least_gap")
    return True


def round_prompts(
    prompts: "list[Row]", settings: Settings, base: "BaseFiles", votes: "list[Row]"
) -> "tuple[list[Row], list[Row], Length]":
    """Prompts to learn from, held-out prompts, and the longest row that they can give.

    Args:
        prompts: as they were read.
        votes: the rows of the first round.

    Raises:
        UserError: there are too few prompts, or the base can't read one.
    """
    from lorarlhf.cli.row_checks import prepare_prompts
    from lorarlhf.stages.round_inputs import split_prompts

    rows, longest = prepare_prompts(base.encoder, prompts, settings.own)
    return *split_prompts(rows, settings.seed, votes), longest
