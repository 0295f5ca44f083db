"""The command `eval`: what a tuned policy can still do, compared with its base."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.cli.result import Result
from lorarlhf.evaluation.skills import ALL, SkillChange, compare_skills, read_tasks
from lorarlhf.project.lineage import read_source_run
from lorarlhf.project.load import load_backbone
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.terminal import progress_bar

BATCH_SIZE = 25
SURE = 0.05
"""The chance of a change that is none below which it is called one."""


def evaluate(args: Namespace) -> Result:
    """Skills of the base and of a policy; status 1 if too much was forgotten."""
    from lorarlhf.project.settings import resolve

    limit = args.limit_regressions
    if limit is not None and not 0 <= limit <= 1:
        raise UserError(f"--limit-regressions is a share from 0 to 1, not {limit}.")
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is 1 or more, not {args.max_new_tokens}.")
    tasks = read_tasks(args.tasks)
    source = read_source_run(newest_run(args.run, "policy"), "policy", "RUN")
    settings = resolve(
        "eval", sets=args.set, flags={"base": args.base}, inherited=source.settings_values()
    )
    backbone = load_backbone(settings)
    backbone.load_role("policy", source.adapter)
    answers = {
        role: _answers(backbone, role, [task.prompt for task in tasks], args, settings.own["plain"])
        for role in ("base", "policy")
    }
    changes = compare_skills(tasks, answers["base"], answers["policy"])
    whole = changes[-1]
    forgot = limit is not None and -whole.change > limit
    data = {"skills": [asdict(change) | {"change": change.change} for change in changes]}
    data["answers"] = [
        {"kind": task.kind, "prompt": task.prompt, "base": base, "policy": policy}
        for task, base, policy in zip(tasks, answers["base"], answers["policy"], strict=True)
    ]
    text = as_text(changes)
    if forgot:
        text += f"\nMore was forgotten than --limit-regressions {limit:g} allows."
    return Result(data, text, status=1 if forgot else 0)


def _answers(
    backbone: Any, role: str, prompts: list[str], args: Namespace, plain: bool
) -> list[str]:
    """The likeliest answer to each task."""
    from lorarlhf.backbone.generation import check_chat_template, generate_encoded
    from lorarlhf.data.readers import as_conversation

    asked = prompts if plain else [as_conversation(prompt) for prompt in prompts]
    check_chat_template(backbone, asked)
    encoded = [backbone.encode(prompt) for prompt in asked]
    with progress_bar(role, len(prompts)) as advance, backbone.role(role):
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            advance(count - done)
            done = count

        found = generate_encoded(
            backbone,
            encoded,
            max_new_tokens=args.max_new_tokens,
            temperature=0.0,
            batch_size=BATCH_SIZE,
            progress=progress,
        )
    return [answer.text for answer in found]


def as_text(changes: list[SkillChange]) -> str:
    """A table for people."""
    lines = ["tasks         of  base  policy  change"]
    for change in changes:
        name = "all" if change.kind == ALL else change.kind
        points = f"{100 * change.change:+.0f} points"
        interval = f"({100 * change.low:+.0f} to {100 * change.high:+.0f})"
        lines.append(
            f"{name:12}  {change.tasks:3}  {change.before:4}  {change.after:6}  {points} {interval}"
        )
    whole = changes[-1]
    if whole.p >= SURE:
        lines.append("No change that is larger than chance.")
    elif whole.change < 0:
        lines.append("The policy has forgotten something: it fails more tasks than by chance.")
    else:
        lines.append("The policy does more of these tasks than the base.")
    return "\n".join(lines)
