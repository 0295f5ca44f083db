"""What a project provides when a command leaves it out: files, runs to start from, and `--out`.

Options on the command line override it.
"""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorarlhf.cli.request import NO_RUN, TrainRequest
from lorarlhf.preferences.exports import training_rows
from lorarlhf.preferences.vote_use import carried_along
from lorarlhf.project.project import Project, is_project, project_settings
from lorarlhf.project.settings import resolve
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.lock import check_free
from lorarlhf.runtime.run_folder import IN_USE
from lorarlhf.runtime.terminal import log_to_stderr

FEWEST_PROMPTS = 4  # one on each side of a split, and some to learn from


def fill_in(request: TrainRequest) -> tuple[TrainRequest, list[SettingValue]]:
    """The request, completed from its earlier run and its project; and the project's settings.

    Raises:
        UserError: there is no project and no file, there are too few votes, or project.yaml has a
            key that does not belong there.
    """
    project = Project(request.project) if request.project else None
    if request.resume:
        request = _with_earlier_run(request, project)
    if project is None:
        if request.data is None:
            stage = request.stage
            raise UserError(
                f"{stage.name} needs {stage.data_option} FILE with {stage.rows}, or a project's "
                "folder."
            )
        return _without_init(request), []
    settings = project_settings(project)
    request = _with_sources(request, project)
    rows = None if request.data or not request.stage.export else vote_rows(project, request.stage)
    if request.out is None:
        out = str(project.next_run(request.stage.name))
        request = replace(request, out=out, reserved=True)
    if rows is not None:
        check_free(request.folder, IN_USE)
        file = _free_file(str(request.out))
        request = replace(request, data=file, votes=file)
        write_jsonl(file, rows)
    elif request.data is None:
        request = replace(request, data=str(project.prompts))
    return request, settings


def _free_file(out: str) -> str:
    """A new file for the votes of a run: an earlier run in the folder keeps its own."""
    names = (f"{out}.votes{number}.jsonl" for number in ("", *map("-{}".format, range(2, 10**6))))
    return next(name for name in names if not Path(name).exists())


def remove_reserved(request: TrainRequest) -> None:
    """Remove what `fill_in` made for a run that never began."""
    if request.reserved and not any(request.folder.iterdir()):
        request.folder.rmdir()
    config = read_json(request.folder / "run.json").get("config") or {}
    if request.votes is not None and config.get("data") != request.recorded().get("data"):
        Path(request.votes).unlink(missing_ok=True)


def _with_earlier_run(request: TrainRequest, project: Project | None) -> TrainRequest:
    """The request with the folder, the files and the settings of the unfinished run.

    Raises:
        UserError: the project has no unfinished run of that stage.
    """
    name = request.stage.name
    if project is not None and request.out is None:
        run = project.unfinished(name)
        if run is None:
            raise UserError(
                f"The project {project.folder} has no unfinished run of {name} to resume. "
                "Without --resume a new one begins."
            )
        request = replace(request, out=str(run))
    file = request.folder / "run.json"
    about = read_json(file)
    config = about.get("config")
    if about.get("stage") != name or not isinstance(config, dict):
        return request
    return request.restored(config, str(file))


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
    """Replace a project by its newest policy, or by its base if it has no policy."""
    if args.run is None or not is_project(args.run):
        return []
    project = Project(args.run)
    run = project.newest_with("policy")
    if run is None and args.role in (None, "base"):
        log_to_stderr(f"The project {args.run} has no policy yet: this is its base.")
        args.run = None
    else:
        args.run = newest_run(args.run, "policy")
    return project_settings(project)


def _with_sources(request: TrainRequest, project: Project) -> TrainRequest:
    """The newest supervised run for the policy; for PPO without a reward the newest reward.

    Rounds of new answers also get the newest reward, and the project's prompts.
    """
    stage = request.stage
    if request.init is None and stage.starts_from_sft:
        run = project.newest_with("policy", ("sft",))
        request = replace(request, init=None if run is None else str(run))
    request = _without_init(request)
    rewards = request.reward or request.reward_function or request.reward_model
    in_rounds = stage.rounds and rounds_of(request) > 0
    if in_rounds and request.prompts is None:
        request = replace(request, prompts=str(project.prompts))
    if (stage.rewarded or in_rounds) and not rewards:
        run = project.newest_with("reward")
        if run is None:
            other = "" if in_rounds else ", or name a --reward-function"
            raise UserError(
                f"The project {project.folder} has no reward yet. Train one with `lorarlhf reward "
                f"{project.folder}`{other}."
            )
        request = replace(request, reward=str(run))
    return request


def _without_init(request: TrainRequest) -> TrainRequest:
    """The request without the run to start from where `--init base` says so."""
    return replace(request, init=None) if request.init == NO_RUN else request


def rounds_of(request: TrainRequest) -> int:
    """How many rounds of new answers are asked for."""
    settings = resolve(
        request.stage, config=request.settings_file, sets=request.sets, inherited=request.earlier
    )
    return int(settings.own["rounds"])


def vote_rows(project: Project, stage: Stage) -> list[dict[str, Any]]:
    """The project's votes as the rows that the stage learns from.

    Raises:
        UserError: they give too few rows.
    """
    votes = project.store().votes(purpose="train")
    export = training_rows(stage.export, votes)
    written = stage.export in ("demonstrations", "edits")
    if written and not export.rows:
        raise UserError(
            f"The project {project.folder} has no demonstrations: nobody has written a better "
            "answer while rating. Name a file with --data."
        )
    prompts = len({json.dumps(row["prompt"]) for row in export.rows})
    if not written and prompts < FEWEST_PROMPTS:
        which = "name a better answer" if stage.export == "trl" else "call an answer good or bad"
        raise UserError(
            f"The project {project.folder} has votes that {which} on {prompts} prompts, and "
            f"{stage.name} needs {FEWEST_PROMPTS} or more. Rate some answers, or name --data FILE."
        )
    also = carried_along(stage.export, votes, stage.strengths)
    log_to_stderr(export.summary(len(votes), stage.name, also))
    return export.rows
