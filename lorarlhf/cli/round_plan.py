"""What a round is made with: the method, its settings and votes, checked before it begins."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.cli.project_defaults import vote_rows
from lorarlhf.project.project import Project, project_settings
from lorarlhf.project.rounds import (
    Round,
    make_round,
    not_decided,
    too_few_votes,
    votes_worth_it,
)
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import absolute_names, write_jsonl
from lorarlhf.stages.table import STAGES

CONFIG = "round.yaml"
"""A project's own settings of the stages in its rounds."""
REWARD = STAGES["reward"]


def begin(project: Project, args: Namespace) -> Round:
    """A new round, after everything was checked that needs no model. Its votes are written down.

    Raises:
        UserError: as `check_plan`, or something is wrong with the votes.
    """
    method, options = check_plan(project, args)
    stage, _ = stage_of(method)
    made = make_round(project, method, options)
    for one in dict.fromkeys((REWARD, stage)):
        if one.export:
            write_jsonl(votes_file(made, one), vote_rows(project, one))
    made.save()
    return made


def votes_file(one: Round, stage: Stage) -> Path:
    """The votes of a round as rows of a stage: later votes do not change a round that began."""
    return one.folder / f"votes-{stage.export}.jsonl"


# ---- may it begin?


def check_plan(project: Project, args: Namespace) -> tuple[str, dict[str, Any]]:
    """The method and the options of a new round.

    Raises:
        UserError: the last round is not decided, there are too few new votes, or something is wrong
            with the options or the settings.
    """
    if not args.anyway:
        _check_may_begin(project)
    method = _method(project)
    options = recorded_options(args)
    if (project.folder / CONFIG).is_file():
        options = {"config": absolute_names(str(project.folder / CONFIG))} | options
    _check_options(method, options)
    return method, options


def _check_may_begin(project: Project) -> None:
    """See that the last round is decided, and that there are enough new votes for another one."""
    if open_question := not_decided(project):
        raise UserError(
            f"{open_question}: `lorarlhf round {project.folder} --keep` or --drop. With --anyway "
            "the next round begins without it."
        )
    _check_worth(project)


def _check_worth(project: Project) -> None:
    """See that there are enough new votes for another round.

    Raises:
        UserError: there are not; it says how many are needed, and how many are worth it.
    """
    lack = too_few_votes(project)
    if lack:
        raise UserError(
            f"{lack}{votes_worth_it(project)} Rate answers with `lorarlhf ui {project.folder}`, or "
            "start with --anyway."
        )


# ---- what it is made with


def recorded_options(args: Namespace) -> dict[str, Any]:
    """The options that a round keeps, with absolute paths, since it may be continued elsewhere.

    Those that are not given are left out, so that a round is continued with its earlier ones.
    """
    names = ("config", "set", "judge_function", "judge_model", "no_memory_check")
    given = {name: getattr(args, name) for name in names if getattr(args, name)}
    files = ("config", "judge_function", "judge_model")
    return given | {name: absolute_names(given[name]) for name in files if name in given}


def _method(project: Project) -> str:
    """The method that project.yaml names.

    Raises:
        UserError: there is no such method.
    """
    named = [item for item in project_settings(project) if item.name == "method"]
    if not named:
        return "ppo"
    method = str(named[-1].value)
    if stage_of(method)[0] is REWARD:
        allowed = [stage.name for stage in STAGES.values() if stage.trains == "policy"]
        raise UserError(
            f"{named[-1].where}: there is no method {method}. The methods are "
            f"{', '.join(allowed)}, and the other algorithms of ppo."
        )
    return method


def stage_of(method: str) -> tuple[Stage, tuple[str, ...]]:
    """The stage of a method, and the settings that choose it; the reward stage for no method."""
    if method in STAGES:
        return STAGES[method], ()
    (algorithm,) = (one for one in STAGES["ppo"].own_settings() if one.name == "algorithm")
    if algorithm.limit is not None and algorithm.limit.allows(method):
        return STAGES["ppo"], (f"algorithm={method}",)
    return REWARD, ()


def sets_for(stage: Stage, method: str, sets: Sequence[str]) -> Iterator[str]:
    """The settings of a stage: its own as STAGE.KEY=VALUE, and for the method the plain ones."""
    main, chosen = stage_of(method)
    if stage is main:
        yield from chosen
    for text in sets:
        name, dot, rest = text.partition(".")
        if dot and name in STAGES:
            if name == stage.name:
                yield rest
        elif stage is main:
            yield text


def in_rounds(method: str, options: dict[str, Any]) -> bool:
    """Whether the method learns from answers that the round's reward role labels, as DPO can."""
    stage, _ = stage_of(method)
    return stage.rounds and _settings(stage, method, options).own["rounds"] > 0


def _settings(stage: Stage, method: str, options: dict[str, Any]) -> Settings:
    """The settings of a stage in a round."""
    sets = [*sets_for(stage, method, options.get("set", []))]
    return resolve(stage, config=options.get("config"), sets=sets)


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Find mistakes now, and not in the middle of the night."""
    from lorarlhf.project.load import open_base_of
    from lorarlhf.rewards.functions import load_function

    main, _ = stage_of(method)
    sets = options.get("set", [])
    for text in sets:
        name, dot, _ = text.partition(".")
        if dot and name in STAGES and name not in (main.name, REWARD.name):
            raise UserError(
                f"--set {text}: this round runs {REWARD.name} and {main.name}, and not {name}."
            )
    for stage in dict.fromkeys((REWARD, main)):
        settings = _settings(stage, method, options)
        stage.make_settings(settings.own, settings.trl)
    for spec in options.get("judge_function", []):
        load_function(spec)
    if "judge_model" in options:
        open_base_of(resolve("eval", flags={"base": options["judge_model"]}))
