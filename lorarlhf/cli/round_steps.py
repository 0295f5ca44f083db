"""The steps of a round. Each can be begun again after a kill, and ends with the same result."""

import random
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorarlhf.cli.request import NO_RUN
from lorarlhf.cli.round_plan import REWARD, in_rounds, sets_for, stage_of, votes_file
from lorarlhf.evaluation.candidates import BASE
from lorarlhf.evaluation.report import write_report
from lorarlhf.evaluation.round_card import measured
from lorarlhf.preferences.blind_comparisons import add_comparison, comparisons, count_items
from lorarlhf.preferences.settings import ANSWERS, read_setting
from lorarlhf.preferences.store import Store
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import Round
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.files import move, read_json
from lorarlhf.runtime.terminal import log_to_stderr

Row = dict[str, Any]
COMPARED = 30
"""Pairs of a blind comparison, at most: as many as the Compare page offers."""
TEMPERATURE, MAX_NEW_TOKENS = 0.8, 128
"""How answers to compare are sampled, until an owner changes it on the Settings page."""


def reward_step(project: Project, one: Round) -> Row:
    """The reward role, afresh from all votes of the round."""
    run = _run_of(project, one, "reward", REWARD)
    # Beside the run, where reports look for the texts of its votes.
    data = run.with_name(f"{run.name}.votes.jsonl")
    if not data.exists():
        part = data.with_name(f".{data.name}.part")
        shutil.copyfile(votes_file(one, REWARD), part)
        move(part, data)
    return _train(one, REWARD, run, ["--data", str(data)])


def method_step(project: Project, one: Round) -> Row:
    """The policy, tuned by the method from the policy of the round before."""
    stage, _ = stage_of(one.method)
    rewarded = stage.rewarded or in_rounds(one.method, one.options)
    words = ["--reward", _reward(one)] if rewarded else []
    if stage.export:
        words += ["--data", str(votes_file(one, stage))]
    return _train(one, stage, _run_of(project, one, "method", stage), words)


def compare_step(project: Project, one: Round) -> Row:
    """Answers of the policy and of the one before, ready for a blind comparison.

    All are added in one transaction: after a kill there is a whole comparison, or none.
    """
    first = one.parents["policy"] or BASE
    second = one.steps["method"]["run"]
    store = project.store()
    try:
        known = next(
            (c for c in comparisons(store) if (c.first, c.second) == (first, second)), None
        )
        if known is None:
            return _compare(store, one, first, second)
        return {"first": first, "second": second, "items": count_items(store, known.id)}
    finally:
        store.close()


def eval_step(project: Project, one: Round) -> Row:
    """`eval` of the policy and the one before, against the base and each other."""
    from lorarlhf.cli.evaluate import evaluate
    from lorarlhf.evaluation.skills import compare_skills, read_tasks

    folder = one.folder / "eval"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed attempt
    words = ["--reward", _reward(one), "--best-of", "0", "--out", str(folder)]
    for spec in one.options.get("judge_function", []):
        words += ["--judge-function", spec]
    if "judge_model" in one.options:
        words += ["--judge-model", one.options["judge_model"]]
    data = evaluate(_eval_args(one, words)).data
    new = _name(one.steps["method"]["run"])
    previous = BASE if one.parents["policy"] is None else _name(one.parents["policy"])
    tasks = read_tasks()
    told = {name: [row["answers"][name] for row in data["tasks"]] for name in (new, previous, BASE)}
    changes = {
        name: compare_skills(tasks, told[before], told[new])
        for name, before in (("previous", previous), ("base", BASE))
    }
    return measured(data, new, previous, changes)


def card_step(project: Project, one: Round) -> Row:
    """How well the reward role predicts votes; the rest of the card is known by now."""
    from lorarlhf.evaluation.reward_report import reward_report
    from lorarlhf.rewards.learning_curve import headline
    from lorarlhf.rewards.vote_fit import VoteFit

    run = project.folder / one.steps["reward"]["run"]
    found = reward_report(VoteFit.load(run / "votes.safetensors"), of=one.votes["count"])
    low, high = found.accuracy.interval
    return {
        "accuracy": found.accuracy.value,
        "low": low,
        "high": high,
        "of": found.accuracy.of,
        "advice": headline(found.curve),
    }


def result_of(one: Round) -> Row:
    """What the card says, from what the steps have noted."""
    comparison = {name: one.steps["compare"][name] for name in ("first", "second", "items")}
    names = ("policy", "previous", "judges", "tasks")
    card = one.steps["card"]
    return {
        "reward": {name: card[name] for name in ("accuracy", "low", "high", "of", "advice")},
        **{name: one.steps["eval"][name] for name in names},
        "comparison": comparison,
        "alarms": one.steps["method"]["summary"].get("alarms", []),
        "seconds": round(sum(step["seconds"] for step in one.steps.values()), 1),
    }


FUNCTIONS: dict[str, Callable[[Project, Round], Row]] = {
    "reward": reward_step,
    "method": method_step,
    "compare": compare_step,
    "eval": eval_step,
    "card": card_step,
}
"""What does each of `rounds.STEPS`."""


# ---- stages


def _run_of(project: Project, one: Round, step: str, stage: Stage) -> Path:
    """The folder of a step's run, which is made once."""
    if "run" not in one.steps.get(step, {}):
        one.note(step, run=f"runs/{project.next_run(stage.name).name}")
    return project.folder / one.steps[step]["run"]


def _train(one: Round, stage: Stage, run: Path, words: list[str]) -> Row:
    """Run a stage, or continue it; returns its summary."""
    from lorarlhf.cli.train import train
    from lorarlhf.runtime.interrupt import stopping_what_follows

    about = read_json(run / "run.json")
    if about.get("status") != "done":
        if one.parents["policy"] is not None:
            words = [*words, "--init", str(one.project_folder / one.parents["policy"])]
        elif stage.starts_from_sft:  # else it would take the newest supervised run
            words = [*words, "--init", NO_RUN]
        if "config" in one.options:
            words += ["--config", one.options["config"]]
        for text in sets_for(stage, one.method, one.options.get("set", [])):
            words += ["--set", text]
        if one.options.get("no_memory_check"):
            words.append("--no-memory-check")
        if about:  # what a killed run has left
            words.append("--resume")
        words = [stage.name, str(one.project_folder), "--out", str(run), *words]
        with stopping_what_follows():
            train(_parsed(words, one))
        about = read_json(run / "run.json")
    if not (run / "report.html").exists():  # killed after the training
        write_report(run)
    return {"summary": {key: value for key, value in about["summary"].items() if key != "out"}}


def _parsed(words: list[str], one: Round) -> Namespace:
    """The options of a command, as if it had been typed; messages name the round's own command."""
    from lorarlhf.cli.parser import build_parser

    args = build_parser().parse_args(words)
    args.argv = ["round", str(one.project_folder)]
    return args


def _reward(one: Round) -> str:
    return str(one.project_folder / one.steps["reward"]["run"])


def _name(run: str) -> str:
    return Path(run).name


# ---- evaluation


def _eval_args(one: Round, words: list[str]) -> Namespace:
    """The options of `eval` for the round's policy and the one before."""
    policies = [one.steps["method"]["run"], *filter(None, [one.parents["policy"]])]
    runs = [str(one.project_folder / run) for run in policies]
    return _parsed(["eval", *runs, *words], one)


def _compare(store: Store, one: Round, first: str, second: str) -> Row:
    """Let both models answer some of the held-out prompts, and add the comparison."""
    from lorarlhf.backbone.generation import generate
    from lorarlhf.cli.eval_plan import read_plan
    from lorarlhf.data.readers import as_conversation
    from lorarlhf.project.load import load_backbone
    from lorarlhf.stages.conversations import prompt_conversations

    plan = read_plan(_eval_args(one, ["--reward", _reward(one), "--best-of", "0"]))
    seed = plan.settings.seed
    different = list({str(row["prompt"]): row for row in plan.prompts}.values())
    count = min(COMPARED, len(different))
    rows = random.Random(f"{seed} {one.number}").sample(different, count)
    asked = [row["prompt"] for row in prompt_conversations(rows, plan.settings.own["plain"])]
    settings = read_setting(store, ANSWERS) or {}
    sampling = {
        "temperature": settings.get("temperature", TEMPERATURE),
        "max_new_tokens": settings.get("max_new_tokens", MAX_NEW_TOKENS),
    }
    backbone = load_backbone(plan.settings)
    texts = []
    for side, source in enumerate((first, second)):
        log_to_stderr(f"{source} answers {count} held-out prompts ...")
        if source != BASE:
            backbone.load_role("policy", plan.policies[_name(source)].adapter)
        found = generate(
            backbone,
            asked,
            role=BASE if source == BASE else "policy",
            # Other seeds on each side: with the same ones, similar models begin alike.
            seed=seed + 2 * one.number + side,
            max_prompt_tokens=plan.settings.own["max_prompt_tokens"],
            **sampling,
        )
        texts.append([answer.text for answer in found])
    with store.write():
        made = add_comparison(store, first, second, count)
        for row, *answers in zip(rows, *texts, strict=True):
            store.add_item(
                as_conversation(row["prompt"]),
                list(zip(answers, (first, second), strict=True)),
                purpose="compare",
                sampling=[sampling] * 2,
                shared=True,
                comparison=made.id,
            )
    return {"first": first, "second": second, "items": count}
