"""What a project's folder fills in when a command is given one: files, runs to start from, `--out`.

What the user says on the command line counts more.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lorarlhf.preferences.exports import EXPORTS, Export
from lorarlhf.project.project import Project, is_project, project_settings
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.terminal import log_to_stderr

FILES = {
    "sft": "--data FILE with demonstrations",
    "reward": "--data FILE with preference pairs",
    "dpo": "--data FILE with preference pairs",
    "orpo": "--data FILE with preference pairs",
    "ppo": "--prompts FILE",
}
FEWEST_PROMPTS = 4  # one on each side of a split, and some to learn from


def fill_in(args: Namespace) -> list[SettingValue]:
    """Fill in a training command from its project; gives the project's settings.

    Raises:
        UserError: no project and no file, too few votes, or a key in project.yaml that does not
            belong there.
    """
    stage = args.command
    if args.workspace is None:
        if args.data is None:
            raise UserError(f"{stage} needs {FILES[stage]}, or a project's folder.")
        return []
    space = Project(args.workspace)
    settings = project_settings(space)
    if getattr(args, "resume", False) and args.out is None:
        _go_on(args, space)
    _runs_to_start_from(args, space)
    votes = None if args.data or stage == "ppo" else _votes(space, stage)
    args.reserved = None
    if args.out is None:
        args.out = args.reserved = str(space.next_run(stage))
    if votes is not None:
        args.data = f"{args.out}.votes.jsonl"
        write_jsonl(args.data, votes)
    elif args.data is None:
        args.data = str(space.prompts)
    return settings


def clear_up(args: Namespace) -> None:
    """Remove what `fill_in` made for a run that never began."""
    reserved = getattr(args, "reserved", None)
    if reserved and not any(Path(reserved).iterdir()):
        Path(reserved).rmdir()
        Path(f"{reserved}.votes.jsonl").unlink(missing_ok=True)


def _go_on(args: Namespace, space: Project) -> None:
    """Name the unfinished run, and the runs and functions that it was started with."""
    run = space.unfinished(args.command)
    if run is None:
        raise UserError(
            f"The project {space.folder} has no unfinished run of {args.command} to go on with. "
            "Without --resume a new one begins."
        )
    args.out = str(run)
    before = read_json(run / "run.json").get("config", {})
    for name in ("data", "eval", "init", "reward", "reward_function", "reward_model"):
        if not getattr(args, name, None) and before.get(name):
            setattr(args, name, before[name])


def newest_run(folder: str, role: str) -> str:
    """The run behind a path: a project's newest one with that role, or the path itself."""
    if not is_project(folder):
        return folder
    run = Project(folder).newest_with(role)
    if run is None:
        needed = "`lorarlhf reward`" if role == "reward" else "`lorarlhf sft` or another stage"
        raise UserError(
            f"The project {folder} has no {role} yet. Train one with {needed} {folder}."
        )
    log_to_stderr(f"{role} of {run}")
    return str(run)


def open_for_chat(args: Namespace) -> list[SettingValue]:
    """Put a project's newest policy, or where it has none its bare base, in its place."""
    if args.run is None or not is_project(args.run):
        return []
    space = Project(args.run)
    run = space.newest_with("policy")
    if run is None and args.role in (None, "base"):
        log_to_stderr(f"The project {args.run} has no policy yet: this is its base.")
        args.run = None
    else:
        args.run = newest_run(args.run, "policy")
    return project_settings(space)


def _runs_to_start_from(args: Namespace, space: Project) -> None:
    """The newest supervised run for the policy; for PPO without a reward the newest reward."""
    if args.init is None and args.command != "sft":
        run = space.newest_with("policy", ("sft",))
        args.init = None if run is None else str(run)
    if args.command == "ppo" and not (args.reward or args.reward_function or args.reward_model):
        run = space.newest_with("reward")
        if run is None:
            raise UserError(
                f"The project {space.folder} has no reward yet. Train one with `lorarlhf reward "
                f"{space.folder}`, or name a --reward-function."
            )
        args.reward = str(run)


def _votes(space: Project, stage: str) -> list[dict[str, Any]]:
    """The project's votes as the rows that the stage learns from."""
    votes = space.store().votes(purpose="train")
    export = EXPORTS["demonstrations" if stage == "sft" else "trl"](votes)
    if stage == "sft" and not export.rows:
        raise UserError(
            f"The project {space.folder} has no demonstrations: nobody has written a better answer "
            "while rating. Name a file with --data."
        )
    prompts = len({json.dumps(row["prompt"]) for row in export.rows})
    if stage != "sft" and prompts < FEWEST_PROMPTS:
        raise UserError(
            f"The project {space.folder} has votes that name a better answer on {prompts} prompts, "
            f"and {stage} needs {FEWEST_PROMPTS} or more. Rate some answers, or name --data FILE."
        )
    _tell(export, len(votes), stage)
    return export.rows


def _tell(export: Export, votes: int, stage: str) -> None:
    left = "; ".join(f"{count} {reason}" for reason, count in sorted(export.left_out.items()))
    rest = f" Not used: {left}." if left else ""
    log_to_stderr(f"{votes} votes give {len(export.rows)} rows for {stage}.{rest}")
