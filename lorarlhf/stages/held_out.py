"""Prompts that DPO, ORPO and KTO hold out, to keep the weights that predict their votes best."""

from collections.abc import Sequence
from typing import Any

from lorarlhf.data.readers import split_by_prompt
from lorarlhf.data.twins import leave_out_shared
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import log_to_stderr
from lorarlhf.stages.conversations import Row

FEWEST = 24
"""Prompts. The loss of fewer says little about others, and the weights that it picks are luck."""


def hold_out(
    rows: Sequence[Row], eval_rows: Sequence[Row] | None, settings: Any, seed: int
) -> tuple[Sequence[Row], Sequence[Row] | None]:
    """Split pairs or labelled answers into training rows and held-out rows of other prompts.

    Args:
        eval_rows: rows to hold out instead of a share of the prompts.
        settings: with `holdout` and `evaluations`.

    Returns:
        the two parts; None in place of the second where nothing is held out.

    Raises:
        UserError: all of `eval_rows` are learned from, or they are never measured.
    """
    if eval_rows is not None:
        if not settings.evaluations:
            raise UserError(
                "With evaluations=0 nothing is measured: leave out the held-out rows (--eval), or "
                "set evaluations to 1 or more."
            )
        return rows, leave_out_shared(rows, eval_rows)
    if not settings.holdout or not settings.evaluations:
        return rows, None
    train, held = split_by_prompt(list(rows), settings.holdout, seed)
    count, held_count = _prompts(rows), _prompts(held)
    if held_count >= FEWEST:
        return train, held
    advice = "For early stopping, name other rows with --eval"
    if count >= 2 * FEWEST:
        advice += f", or set holdout={-(-100 * FEWEST // count) / 100:g}"
    log_to_stderr(
        f"Nothing is held out: holdout={settings.holdout:g} of {count} prompts is {held_count}, "
        f"and the loss of fewer than {FEWEST} says little. The training learns from all rows and "
        f"keeps its last weights. {advice}."
    )
    return rows, None


def _prompts(rows: Sequence[Row]) -> int:
    return len({repr(row["prompt"]) for row in rows})
