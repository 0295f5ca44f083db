"""The command `eval`: did it get better than the base, and what was forgotten?"""

from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.eval_history import learned_note
from lorarlhf.cli.eval_judges import Judges
from lorarlhf.cli.eval_plan import EvalPlan, check_options, out_folder, read_plan
from lorarlhf.cli.result import Result
from lorarlhf.evaluation.candidates import BASE, Candidate
from lorarlhf.evaluation.eval_page import write_eval
from lorarlhf.evaluation.eval_results import answer_rows, as_text, results, skills_as_text
from lorarlhf.evaluation.skills import SkillChange, Task, compare_skills, read_tasks
from lorarlhf.project.load import load_backbone

if TYPE_CHECKING:
    from lorarlhf.cli.eval_answers import Answering

Row = dict[str, Any]


def evaluate(args: Namespace) -> Result:
    """Answers, verdicts and skills of the candidates; status 1 if too much was forgotten."""
    check_options(args)
    tasks = [] if args.no_skills else read_tasks(args.tasks)
    plan = read_plan(args)
    judges = Judges.of(args, plan)
    folder = out_folder(args.out, plan)
    answering, base, candidates = _answer(plan, args, tasks)
    data: Row = {"prompts": len(plan.prompts), "samples": args.samples}
    text: list[str] = []
    answers: list[Row] = []
    if plan.prompts:
        verdicts = judges.ask(answering, plan, base, candidates)
        data |= results(base, candidates, verdicts, plan.settings.seed)
        note = learned_note(plan.policies, [row["prompt"] for row in plan.prompts])
        data["notes"] = [note] if note else []
        asked = [plan.prompts[group]["prompt"] for group in answering.groups]
        answers = answer_rows(asked, base, candidates, verdicts)
        text += [as_text(data)]
    changes = _skills(tasks, answering.told)
    data |= _skill_data(tasks, answering.told, changes)
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
    if args.best_of is not None:
        candidates.append(answering.best_of(args.best_of, plan.reward_folder))
    candidates += [answering.policy(name) for name in plan.policies]
    return answering, base, candidates


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
