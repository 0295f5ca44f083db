"""What `eval` compares: the options checked, the runs behind them, and the settings to load."""

from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorarlhf.backbone.limits import count_adapter_layers
from lorarlhf.cli.eval_history import run_folder
from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.evaluation.candidates import BASE
from lorarlhf.project.lineage import SourceRun, check_same_base, read_source_run
from lorarlhf.project.project import Project, is_project, project_settings
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.terminal import log_to_stderr

Row = dict[str, Any]
HELD_OUT = "prompts_heldout.jsonl"
"""A project's own held-out prompts; without this file the bundled ones are used."""
BEST_OF = 4
"""From how many answers best of n picks where nobody says it and a project has a reward role."""
FOR_PROMPTS = ("prompts", "rater", "reward", "judge_function", "judge_model", "best_of")
"""Options that have no effect on the short tasks."""


@dataclass(frozen=True)
class EvalPlan:
    """What is loaded and asked.

    Attributes:
        policies: the source run of each candidate by its name.
        reward: the run of the reward role that judges and picks; None without one.
        best_of: from how many answers of the base the reward role picks; 0 for no best of n.
        project: whose held-out prompts and votes are used; None outside of a project.
        prompts: the held-out prompts as they were read, with their columns.
    """

    policies: dict[str, SourceRun]
    reward: SourceRun | None
    best_of: int
    project: Project | None
    prompts: list[Row]
    settings: Settings

    @property
    def reward_folder(self) -> str:
        """The folder of the reward role's run, as `made_with` names it; "" without one."""
        return "" if self.reward is None else run_folder(self.reward)


def check_options(args: Namespace) -> None:
    """Refuse options that are out of range or do not go together.

    Raises:
        UserError: it names the option.
    """
    limit = args.limit_regressions
    if limit is not None and not 0 <= limit <= 1:
        raise UserError(f"--limit-regressions is a share from 0 to 1, not {limit}.")
    for option in ("max_new_tokens", "samples"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is 1 or more, not {value}.")
    if not 0 < args.temperature < float("inf"):
        raise UserError(f"--temperature is above 0, not {args.temperature}.")
    if args.best_of is not None and args.best_of < 2 and args.best_of != 0:
        raise UserError(f"--best-of is 2 or more, or 0 for none, not {args.best_of}.")
    if args.judge_prompt is not None and args.judge_model is None:
        raise UserError("--judge-prompt is for a judging model: name one with --judge-model BASE.")
    if args.no_skills and (args.skills_only or limit is not None or args.tasks is not None):
        raise UserError("--no-skills leaves out what the other options ask for. Leave it out.")
    if not args.run and not args.best_of:
        raise UserError("Say what to compare with the base: RUN, a project, or --best-of N.")
    given = [f"--{name.replace('_', '-')}" for name in FOR_PROMPTS if getattr(args, name)]
    if args.skills_only and given:
        raise UserError(f"--skills-only asks nothing but the tasks. Leave out {given[0]}.")


def read_plan(args: Namespace) -> EvalPlan:
    """The runs, prompts and settings that the options name, before anything is loaded.

    Raises:
        UserError: a run or file does not exist, there is nothing to compare, or two runs can't
            share a base.
    """
    project = _project([*args.run, *([args.reward] if args.reward else [])])
    reward = None if args.skills_only else _reward(args, project)
    policies = _policies(args, has_reward=reward is not None)
    for_tasks = args.skills_only or args.limit_regressions is not None or args.tasks is not None
    if not policies and for_tasks:
        raise UserError("The short tasks are for policies, and there is none: name a RUN.")
    if args.best_of and reward is None:
        raise UserError("--best-of needs a reward role to pick by: name a run with --reward RUN.")
    file = Path(args.prompts).expanduser() if args.prompts else bundled("prompts_heldout")
    if args.prompts is None and project is not None and (project.folder / HELD_OUT).is_file():
        file = project.folder / HELD_OUT
    prompts = [] if args.skills_only else read_prompts(file)
    sources = [*policies.values(), *([reward] if reward is not None else [])]
    settings = _settings(args, project, sources)
    if reward is not None and not _reads_these_layers(reward, settings):
        _leave_out(reward, args, policies, settings)
        reward, sources = None, [*policies.values()]
        settings = _settings(args, project, sources)
    # Adapters of other shapes are brought to the largest one, so only the base has to be the same.
    bare = [replace(source, settings={}) for source in sources]
    check_same_base(bare, "base" in settings.given)
    return EvalPlan(policies, reward, _best_of(args, project, reward), project, prompts, settings)


def _best_of(args: Namespace, project: Project | None, reward: SourceRun | None) -> int:
    if args.best_of is not None:
        return int(args.best_of)
    if project is None or reward is None:
        return 0
    log_to_stderr(
        f"Best of {BEST_OF} is compared, too: the base answers each prompt {BEST_OF} times more. "
        "--best-of 0 leaves it out."
    )
    return BEST_OF


def _reads_these_layers(reward: SourceRun, settings: Settings) -> bool:
    """Whether the head fits: a mean-pooled one reads the states below its own adapter layers."""
    note = read_json(reward.adapter / "lorarlhf.json")
    own, here = note.get("adapter_layers"), settings.backbone["adapter_layers"]
    pooling = note.get("pooling", "mean" if note else "last")  # as `storage.load_role` reads it
    if pooling != "mean" or own is None or str(own) == str(here):
        return True
    if str(here).isdecimal():
        return False
    config = read_json(Path(reward.base_path) / "config.json")
    layers = (config.get("text_config") or config).get("num_hidden_layers")
    # Where the base can't be counted, loading the role decides.
    return not isinstance(layers, int) or count_adapter_layers(here, layers) == own


def _leave_out(
    reward: SourceRun, args: Namespace, policies: dict[str, SourceRun], settings: Settings
) -> None:
    """Say that a reward role can't be loaded beside the policies, or refuse if it was asked for."""
    own, here = reward.settings["adapter_layers"], settings.backbone["adapter_layers"]
    others = [name for name, run in policies.items() if run.settings.get("adapter_layers") != own]
    why = (
        f"the reward role of {reward.run} reads the states below {own} adapter layers, and the "
        f"roles here have {here}{f' because of {others[0]}' if others else ''}"
    )
    if args.reward is not None or args.best_of or not policies:
        raise UserError(
            f"Can't load these together: {why}. Train a reward role with --set "
            f"adapter_layers={here}, or compare policies with the reward role's {own} layers."
        )
    log_to_stderr(f"The reward role is left out as a judge: {why}.")


def _project(runs: Sequence[str]) -> Project | None:
    """The project that is named, or in whose folder the first run lies."""
    for run in runs:
        folder = Path(run).expanduser()
        for place in (folder, folder.resolve().parent.parent):
            if is_project(place):
                return Project(place)
    return None


def _policies(args: Namespace, has_reward: bool) -> dict[str, SourceRun]:
    folders: list[str] = []
    for run in args.run:
        if is_project(run):
            newest = _newest_of_each_stage(Project(run))
            if not newest and not (has_reward and args.best_of != 0):
                newest_run(run, "policy")  # explains how to train one
            folders += map(str, newest)
        else:
            folders.append(run)
    sources = [read_source_run(folder, "policy", "RUN") for folder in dict.fromkeys(folders)]
    times = Counter([BASE, *map(_name, sources)])  # the base has its own name already
    return {
        _name(source) if times[_name(source)] == 1 else str(source.run.resolve()): source
        for source in sources
    }


def _newest_of_each_stage(project: Project) -> list[Path]:
    """The newest finished policy of each stage that is not dropped, the oldest first."""
    found: dict[str, Path] = {}
    for run in project.kept_runs():
        about = read_json(run / "run.json")
        saved = (run / "adapters" / "policy" / "adapter_config.json").is_file()
        if saved and about.get("status") == "done":
            found.setdefault(str(about.get("stage")), run)
    if found:
        log_to_stderr(f"policies of {', '.join(run.name for run in found.values())}")
    return list(found.values())[::-1]


def _name(source: SourceRun) -> str:
    """A run's folder name, also where its adapter's own folder is named."""
    return Path(run_folder(source)).name


def _reward(args: Namespace, project: Project | None) -> SourceRun | None:
    """The reward role that is named, or else the project's newest one."""
    if args.reward is not None:
        return read_source_run(newest_run(args.reward, "reward"), "reward", "--reward")
    newest = project.newest_with("reward") if project is not None else None
    return None if newest is None else read_source_run(newest, "reward", "--reward")


def _settings(args: Namespace, project: Project | None, sources: Sequence[SourceRun]) -> Settings:
    inherited = [] if project is None else project_settings(project)
    for source in reversed(sources):  # those of the first candidate count
        inherited += source.settings_values()
    ranks = [s.settings["lora_rank"] for s in sources if s.settings.get("lora_rank")]
    layers = [s.settings["adapter_layers"] for s in sources if s.settings.get("adapter_layers")]
    if ranks:
        inherited.append(SettingValue("lora_rank", max(ranks), "the runs"))
    if layers:
        whole = [x for x in layers if not isinstance(x, int)]
        widest = whole[0] if whole else max(layers)
        inherited.append(SettingValue("adapter_layers", widest, "the runs"))
    flags = {"base": args.base, "seed": args.seed}
    return resolve("eval", sets=args.set, flags=flags, inherited=inherited)


def out_folder(out: str | None, plan: EvalPlan) -> Path:
    """Where the results go: the named folder, or a new one.

    Raises:
        UserError: the named folder holds something else than earlier results.
    """
    if out is not None:
        folder = Path(out).expanduser()
        other = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
        if other and not (folder / "eval.json").is_file():
            raise UserError(f"--out {out} holds something else already. Name a new folder.")
        return folder
    first = Path("runs/eval") if plan.project is None else plan.project.folder / "eval"
    names = (first.with_name(f"eval{end}") for end in ("", *map("-{}".format, range(2, 10**6))))
    return next(name for name in names if not name.exists())
