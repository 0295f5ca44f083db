"""The command `eval`: did it get better than the base, and what was forgotten?"""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.eval_history import learned_note
from lorarlhf.cli.eval_judges import Judges
from lorarlhf.cli.eval_plan import EvalPlan, check_options, out_folder, read_plan
from lorarlhf.cli.result import Result
from lorarlhf.evaluation.candidates import BASE, Candidate
from lorarlhf.evaluation.eval_page import write_eval
from lorarlhf.evaluation.eval_results import answer_rows, as_text, results, skills_as_text
from lorarlhf.evaluation.judges import Verdicts
from lorarlhf.evaluation.skills import SkillChange, Task, compare_skills, read_tasks
from lorarlhf.project.load import load_backbone
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.cli.eval_answers import Answering

Row = dict[str, Any]


def evaluate(args: Namespace) -> Result:
    """Answers, verdicts and skills of the candidates; status 1 if too much was forgotten."""
    check_options(args)
    tasks = [] if args.no_skills else read_tasks(args.tasks)
    plan = read_plan(args)
    tasks = tasks if plan.policies else []  # the base and best of n of it can't forget anything
    judges = Judges.of(args, plan)
    folder = out_folder(args.out, plan)
    answering, base, candidates = _answer(plan, args, tasks)
    changes = _skills(tasks, answering.told)
    data: Row = {"prompts": len(plan.prompts), "samples": args.samples}
    data |= _skill_data(tasks, answering.told, changes)
    text: list[str] = []
    answers: list[Row] = []
    if plan.prompts:
        note = learned_note(plan.policies, [row["prompt"] for row in plan.prompts])
        data["notes"] = [note] if note else []
        verdicts = _verdicts(judges, answering, plan, folder, base, candidates, data)
        data |= results(base, candidates, verdicts, plan.settings.seed)
        answers = answer_rows(_asked(plan, answering), base, candidates, verdicts)
        text += [as_text(data)]
    text += [skills_as_text(some, name) for name, some in changes.items()]
    data["page"] = str(write_eval(folder, data, answers))
    text.append(f"Page: {data['page']}")
    forgot = _forgot(changes, args.limit_regressions)
    if forgot:
        limit = f"--limit-regressions {args.limit_regressions:g} allows"
        text.append(f"More was forgotten than {limit}: {', '.join(forgot)}.")
    return Result(data | {"answers": answers}, "\n\n".join(text), status=1 if forgot else 0)


def _answer(
    plan: EvalPlan, args: Namespace, tasks: list[Task]
) -> tuple["Answering", Candidate, list[Candidate]]:
    """Load the base and let it, the best of n and each policy answer."""
    from lorarlhf.cli.eval_answers import Answering

    backbone = load_backbone(plan.settings)
    if plan.reward is not None:
        backbone.load_role("reward", plan.reward.adapter)
    answering = Answering(backbone, plan, args, tasks)
    base, candidates = answering.base(), []
    if plan.best_of:
        candidates.append(answering.best_of(plan.best_of, plan.reward_folder))
    candidates += [answering.policy(name) for name in plan.policies]
    return answering, base, candidates


def _asked(plan: EvalPlan, answering: "Answering") -> list[Any]:
    return [plan.prompts[group]["prompt"] for group in answering.groups]


def _verdicts(
    judges: Judges,
    answering: "Answering",
    plan: EvalPlan,
    folder: Path,
    base: Candidate,
    candidates: list[Candidate],
    data: Row,
) -> list[Verdicts]:
    """What the judges say. The answers are written first, so that a judge that fails loses none."""
    unjudged = data | results(base, candidates, [], plan.settings.seed)
    write_eval(folder, unjudged, answer_rows(_asked(plan, answering), base, candidates, []))
    try:
        return judges.ask(answering, plan, base, candidates)
    except BaseException:
        log_to_stderr(f"The answers are in {folder / 'answers.jsonl'}, without all verdicts.")
        raise


# ---- skills


def _skills(tasks: list[Task], told: dict[str, list[str]]) -> dict[str, list[SkillChange]]:
    """The change from the base to each candidate."""
    return {
        name: compare_skills(tasks, told[BASE], answers)
        for name, answers in told.items()
        if name != BASE
    }


def _skill_data(
    tasks: list[Task], told: dict[str, list[str]], changes: dict[str, list[SkillChange]]
) -> Row:
    return {
        "skills": [
            {"candidate": name, **asdict(change), "change": change.change}
            for name, some in changes.items()
            for change in some
        ],
        "tasks": [
            {"kind": task.kind, "prompt": task.prompt, "answers": dict(zip(told, row, strict=True))}
            for task, row in zip(tasks, zip(*told.values(), strict=True), strict=True)
        ],
    }


def _forgot(changes: dict[str, list[SkillChange]], limit: float | None) -> list[str]:
    """The candidates whose share of done tasks fell by more than the limit."""
    if limit is None:
        return []
    return [name for name, some in changes.items() if -some[-1].change > limit]
