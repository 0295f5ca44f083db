"""What `compare-methods` trains: the methods, and the command of each."""

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.cli.compare_settings import check_settings, method_settings, read_config
from lorarlhf.cli.eval_plan import HELD_OUT
from lorarlhf.cli.project_defaults import FEWEST_PROMPTS, newest_run
from lorarlhf.cli.request import NO_RUN
from lorarlhf.data.readers import read_prompts
from lorarlhf.preferences.vote_use import VoteUse, count_use
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.stages.table import STAGES

Row = dict[str, Any]
UPDATES, ROUNDS = "updates=1000000", "rounds=1000000"
"""More than any budget suffices for."""
ANSWERS = "num_generations=4"
"""To a prompt: from two, an advantage says no more than which is the better one."""
BEST_OF = re.compile(r"best-of-(\d+)")
VOTES = "votes.jsonl"
"""The copy of the votes that all methods learn from."""
RECORD, RESULTS = "methods.json", "comparison.json"
"""What a comparison has done, and what it has found."""
FORMS = ("trl", "kto", "demonstrations")


@dataclass(frozen=True)
class Method:
    """One way to learn from votes.

    Attributes:
        stage: whose command trains it; "" for best of n.
        sets: settings that make the stage this method.
        usual: settings that count where nobody has given them: among them the one that says how
            long it goes on, which the minutes replace.
        rewarded: whether it needs the reward role.
        best_of: of best of n, from how many answers it picks.
    """

    name: str
    stage: str = ""
    sets: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    rewarded: bool = False
    best_of: int = 0

    @property
    def form(self) -> str:
        """The form of the votes that it learns from, itself or through the reward role."""
        return (STAGES[self.stage].export if self.stage else "") or "trl"

    @property
    def fewest_votes(self) -> int:
        """How many votes it needs, where it learns from votes."""
        return 1 if self.form == "demonstrations" else FEWEST_PROMPTS

    def learns_from_votes(self, reward: str) -> bool:
        """Whether it learns from votes, itself or through a reward role that is trained for it.

        Args:
            reward: the run of the reward role that is there already; "" for none.
        """
        return not (reward and self.rewarded and self.stage != "dpo")


_LIST = (
    Method("sft", "sft"),
    Method("dpo", "dpo"),
    Method("orpo", "orpo"),
    Method("kto", "kto"),
    Method("ppo", "ppo", (), (UPDATES,), rewarded=True),
    Method("rloo", "ppo", ("algorithm=rloo",), (UPDATES, ANSWERS), rewarded=True),
    Method("grpo", "ppo", ("algorithm=grpo",), (UPDATES, ANSWERS), rewarded=True),
    Method("iterated-dpo", "dpo", (), (ROUNDS,), rewarded=True),
)
REWARD = Method("reward", "reward")
"""Trained before the methods that need it."""
METHODS = {method.name: method for method in _LIST}
BY_DEFAULT = (*METHODS, "best-of-4")


def find_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, each once.

    Raises:
        UserError: no such method, or best of n with two different n.
    """
    found = {}
    for name in names:
        best = BEST_OF.fullmatch(name)
        if best and int(best[1]) >= 2:
            found[name] = Method(name, rewarded=True, best_of=int(best[1]))
        elif name in METHODS:
            found[name] = METHODS[name]
        else:
            raise UserError(
                f"There is no method {name}. The methods are {', '.join(METHODS)}, and best-of-N "
                "with a number of 2 or more."
            )
    if sum(bool(method.best_of) for method in found.values()) > 1:
        raise UserError("Only one best-of-N can be compared at a time. Leave the others out.")
    return list(found.values())


@dataclass(frozen=True)
class ComparePlan:
    """What is compared, and how.

    Attributes:
        folder: of the results; its own runs are in it where `apart` is true, else in the project.
        settings: of each method, by name, for a settings file.
        usual: of each method, its usual settings that the file does not give.
        init, reward: the runs to start from and to be rewarded by; "" for none and for a new one.
    """

    project: Project
    methods: list[Method]
    folder: Path
    apart: bool
    minutes: float
    seed: int
    config: Row
    settings: dict[str, Row]
    usual: dict[str, tuple[str, ...]]
    init: str
    reward: str
    args: Namespace

    def words(self, method: Method, folder: Path, reward: str | None) -> list[str]:
        """The command that trains a method into a folder."""
        stage = STAGES[method.stage]
        words = [stage.name, str(self.project.folder), "--out", str(folder)]
        words += ["--init", self.init or NO_RUN] if stage.starts_from_sft else []
        words += ["--seed", str(self.seed)]
        if self.settings[method.name]:
            words += ["--config", str(self.config_file(method))]
        if stage.export:
            words += ["--data", str(self.folder / VOTES)]
        if method == REWARD:
            return words
        words += ["--minutes", f"{self.minutes:g}"]
        if method.rewarded and reward is not None:
            words += ["--reward", reward]
        sets = (*method.sets, *self.usual[method.name])
        return words + [part for text in sets for part in ("--set", text)]

    def config_file(self, method: Method) -> Path:
        """Where the settings of a method are written for its command."""
        return self.folder / f"{method.name}.yaml"

    def eval_words(self, runs: Sequence[Path], reward: str | None) -> list[str]:
        """The command that evaluates these runs and best of n; empty if there is nothing."""
        best = next((method.best_of for method in self.methods if method.best_of), 0)
        if not runs and not best:
            return []
        args = self.args
        words = ["eval", *([self.init] if self.init else []), *map(str, runs)]
        words += ["--best-of", str(best), *(["--reward", reward] if reward is not None else [])]
        for option in ("rater", "judge_function"):
            for value in getattr(args, option):
                words += [f"--{option.replace('_', '-')}", value]
        held_out = self.project.folder / HELD_OUT
        prompts = args.prompts or (str(held_out) if held_out.is_file() else None)
        words += ["--prompts", prompts] if prompts else []
        words += ["--max-new-tokens", str(args.max_new_tokens)] if args.max_new_tokens else []
        words += ["--samples", str(args.samples), "--seed", str(self.seed)]
        words += ["--no-skills"] if args.no_skills or not runs else []
        return [*words, "--out", str(self.folder / "eval")]

    def people(self) -> int:
        """The number of votes in blind comparisons: with new ones the runs are judged anew."""
        store = self.project.store()
        try:
            return len(store.votes(purpose="compare"))
        finally:
            store.close()

    def asked(self) -> Row:
        """What has to be the same for methods that are compared."""
        names = ("minutes", "seed", "config", "init", "reward")
        return {name: getattr(self, name) for name in names}


def read_plan(args: Namespace) -> ComparePlan:
    """The plan that the options describe, checked before anything is trained.

    Raises:
        UserError: an option is out of range, or a method, run, file or judge does not exist.
    """
    from lorarlhf.project.lineage import read_source_run
    from lorarlhf.rewards.functions import load_function
    from lorarlhf.rewards.raters import Rater

    project = Project(args.project)
    if not args.minutes > 0:
        raise UserError(f"--minutes is above 0, not {args.minutes:g}.")
    for option in ("samples", "max_new_tokens"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is 1 or more, not {value}.")
    for name in args.rater:
        Rater.named(name)
    for spec in args.judge_function:
        load_function(spec)
    if args.prompts:
        read_prompts(args.prompts)
    config = read_config(args.config)
    folder = Path(args.out).expanduser() if args.out else _unfinished(project, args, config)
    record = read_json(folder / RECORD)
    init = args.init
    if init is None and record:  # its own sft run may be the newest one by now
        init = record["asked"]["init"]
    elif init is None:
        init = project.newest_with("policy", ("sft",)) or ""
    elif init == NO_RUN:
        init = ""
    if init:
        read_source_run(init, "policy", "--init")
    reward = newest_run(args.reward, "reward") if args.reward else ""
    if reward:
        read_source_run(reward, "reward", "--reward")
    methods = find_methods(args.methods or _by_default(_uses(project, record), reward))
    blocks = {*STAGES, *METHODS}
    settings, usual = {}, {}
    for method in [REWARD, *(method for method in methods if method.stage)]:
        made = method_settings(config, method.name, method.stage, blocks)
        given = check_settings(made, method.name, method.stage, str(args.config))
        settings[method.name] = made
        kept = [text for text in method.usual if text.partition("=")[0] not in given]
        usual[method.name] = tuple(kept)
    return ComparePlan(
        project=project,
        methods=methods,
        folder=folder,
        apart=args.out is not None,
        minutes=args.minutes,
        seed=args.seed,
        config=config,
        settings=settings,
        usual=usual,
        init=str(init),
        reward=reward,
        args=args,
    )


def count_uses(project: Project) -> dict[str, VoteUse]:
    """What becomes of the project's votes in each form."""
    store = project.store()
    try:
        votes = store.votes(purpose="train")
    finally:
        store.close()
    return {form: count_use(form, votes) for form in FORMS}


def _uses(project: Project, record: Mapping[str, Any]) -> dict[str, VoteUse]:
    """What becomes of the votes: of the copy, where the comparison has begun."""
    if not record:
        return count_uses(project)
    return {form: VoteUse(**use) for form, use in record["votes"].items()}


def _by_default(uses: Mapping[str, VoteUse], reward: str) -> list[str]:
    """All methods that the votes suffice for; with none, one whose error says what is missing."""
    found = [
        method.name
        for method in find_methods(BY_DEFAULT)
        if not method.learns_from_votes(reward) or uses[method.form].used >= method.fewest_votes
    ]
    return found or ["dpo"]


def _unfinished(project: Project, args: Namespace, config: Row) -> Path:
    """The folder of the project's unfinished comparison, or of a new one.

    One in which a method has failed is not finished: the same command goes on with it.
    """
    asked = {"minutes": args.minutes, "seed": args.seed, "config": config}
    number, folder = 1, project.folder / "methods"
    while found := read_json(folder / RESULTS):
        same = asked.items() <= read_json(folder / RECORD).get("asked", {}).items()
        if same and any(row.get("failed") for row in found.get("methods", [])):
            break
        number += 1
        folder = project.folder / f"methods-{number}"
    return folder
