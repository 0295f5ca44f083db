"""The texts of the votes that a reward run was fitted to, to show examples of tastes."""

import contextlib
from pathlib import Path
from typing import Any

from lorarlhf.data.readers import as_conversation, as_text, read_preferences, split_by_prompt
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json


def pairs_behind(run: Path, votes: VoteFit) -> list[dict[str, Any]] | None:
    """The rows (`prompt`, `chosen`, `rejected`) of a reward run's votes, in their order.

    The file of the run is read again and split as the run has split it.

    Args:
        votes: as the run has saved them.

    Returns:
        None if the file is gone, or does not have the prompts of these votes any more.
    """
    about = read_json(run / "run.json")
    config = about.get("config") or {}
    file = Path(str(config.get("data") or "")).expanduser()
    if not file.is_file():
        return None
    with contextlib.suppress(UserError):
        rows = read_preferences(file)
        if not config.get("eval"):
            rows, _ = split_by_prompt(rows, config.get("holdout", 0.2), about.get("seed", 0))
        plain = bool(config.get("plain"))
        prompts = [row["prompt"] if plain else as_conversation(row["prompt"]) for row in rows]
        if [repr(prompt) for prompt in prompts] == votes.groups:
            return rows
    return None


def as_example(row: dict[str, Any]) -> dict[str, str]:
    """A row as texts: the last message of the prompt, and both answers."""
    prompt = row["prompt"]
    asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return {
        "prompt": asked,
        "chosen": as_text(row["chosen"]),
        "rejected": as_text(row["rejected"]),
    }
