"""The judges of `eval` that the options name: prepared before anything is loaded, then asked."""

import gc
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.eval_history import absolute_function
from lorarlhf.cli.eval_plan import EvalPlan
from lorarlhf.evaluation.candidates import BASE, Candidate
from lorarlhf.evaluation.judges import (
    Comparisons,
    Verdicts,
    by_people,
    by_rater,
    by_scores,
    function_scores,
)
from lorarlhf.preferences.blind_comparisons import finished_votes
from lorarlhf.project.load import load_backbone, open_base_of
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.rewards.functions import RewardFunction, load_function
from lorarlhf.rewards.raters import Rater
from lorarlhf.runtime.terminal import log_to_stderr, progress_bar

if TYPE_CHECKING:
    from lorarlhf.cli.eval_answers import Answering

Row = dict[str, Any]
REWARD_NOTE = "it was learned from votes, and a policy can learn to exploit it"
MODEL_NOTE = "asked twice with the sides swapped; where it contradicts itself the pair is a tie"


@dataclass(frozen=True)
class ModelJudge:
    """A judging base that was found: its settings, its files and its template."""

    settings: Settings
    files: Any
    template: str


@dataclass(frozen=True)
class Judges:
    """The judges besides the reward role and the people, which the plan has."""

    raters: list[str]
    functions: dict[str, RewardFunction]
    model: ModelJudge | None

    @classmethod
    def of(cls, args: Namespace, plan: EvalPlan) -> "Judges":
        """Read what the options name, so that a mistake costs no time.

        Raises:
            UserError: no such rater, function, template or base.
        """
        raters = list(dict.fromkeys(args.rater))
        for name in raters:
            Rater.named(name)
        functions = {spec: load_function(spec) for spec in args.judge_function}
        if args.judge_model is None:
            return cls(raters, functions, None)
        from lorarlhf.evaluation.model_judge import letter_tokens, read_template

        template = read_template(args.judge_prompt)
        names = ("bits", "device", "compute_dtype")
        how = {name: plan.settings.backbone[name] for name in names}
        settings = resolve("eval", flags={"base": args.judge_model, **how})
        files = open_base_of(settings)
        letter_tokens(files.tokenizer)
        return cls(raters, functions, ModelJudge(settings, files, template))

    def ask(
        self,
        answering: "Answering",
        plan: EvalPlan,
        base: Candidate,
        candidates: Sequence[Candidate],
    ) -> list[Verdicts]:
        """What each judge says; people first, and a judging model last.

        A judging model replaces the candidates' base in memory.
        """
        sides: Any = (candidates, base, answering.groups)
        people = _people(plan)
        found = [] if people is None else [people]
        found += [by_rater(name, *sides) for name in self.raters]
        names = _function_names(list(self.functions))
        for spec, function in self.functions.items():
            scores = partial(function_scores, function, answering.rows)
            about = _doubt(candidates, absolute_function(spec), "")
            found.append(by_scores(f"function {names[spec]}", scores, *sides, **about))
        if plan.reward is not None:
            about = _doubt(candidates, plan.reward_folder, REWARD_NOTE) | {"independent": False}
            name = f"reward of {plan.reward.run.name}"
            found.append(by_scores(name, answering.reward_scores, *sides, **about))
        if self.model is not None:
            found.append(_by_model(self.model, answering, *sides))
        return found


def _function_names(specs: Sequence[str]) -> dict[str, str]:
    """The name of each function in the tables: as short as the others allow."""
    short = {spec: spec.rpartition(":")[2] for spec in specs}
    times = Counter(short.values())
    return {spec: name if times[name] == 1 else spec for spec, name in short.items()}


def _doubt(candidates: Sequence[Candidate], judge: str, otherwise: str) -> Row:
    """Whether candidates were made with this judge, and a note that names them."""
    made = [one.name for one in candidates if judge in one.made_with]
    note = f"{', '.join(made)} {'was' if len(made) == 1 else 'were'} made with it"
    return {"independent": not made, "note": note if made else otherwise}


def _people(plan: EvalPlan) -> Verdicts | None:
    """The votes of the project's blind comparisons of these candidates with the base.

    Those that are still running are left out: the Compare page hides who is ahead, too.
    """
    if plan.project is None:
        return None
    runs = (plan.project.folder / "runs").resolve()
    names = {
        f"runs/{folder.name}": name
        for name, source in plan.policies.items()
        if (folder := source.adapter.resolve().parent.parent).parent == runs
    }
    if plan.best_of and (picker := Path(plan.reward_folder)).parent == runs:
        names[f"{BASE}, best of {plan.best_of} by {picker.name}"] = f"best of {plan.best_of}"
    store = plan.project.store()
    try:
        votes, running = finished_votes(store, purpose="compare")
    finally:
        store.close()
    if running:
        log_to_stderr(f"{running} votes of the blind comparison that still runs are left out.")
    return by_people(votes, names)


def _by_model(
    judge: ModelJudge,
    answering: "Answering",
    candidates: Sequence[Candidate],
    base: Candidate,
    groups: Sequence[int],
) -> Verdicts:
    from lorarlhf.backbone.devices import give_back_memory
    from lorarlhf.backbone.storage import fingerprint
    from lorarlhf.evaluation.model_judge import judge_pairs_by_model

    own_base = fingerprint(answering.backbone)
    del answering.backbone  # both bases at once may not fit into memory
    gc.collect()
    give_back_memory()
    backbone = load_backbone(judge.settings, judge.files)
    prompts, found = [row["prompt"] for row in answering.rows], {}
    theirs = [answer.text for answer in base.answers]
    for one in candidates:
        ours = [answer.text for answer in one.answers]
        with progress_bar(f"judging {one.name}", 2 * len(ours)) as advance:
            outcomes = judge_pairs_by_model(
                backbone, judge.template, prompts, ours, theirs, advance
            )
        found[one.name] = Comparisons([*outcomes], one.lengths, base.lengths, list(groups))
    same = fingerprint(backbone) == own_base
    note = f"it is the candidates' own base; {MODEL_NOTE}" if same else MODEL_NOTE
    return Verdicts(f"model {judge.settings.base}", found, independent=not same, note=note)
