"""What each subcommand does: `demo`, `score`, `chat`, `doctor`, `ui`...; training.py trains.

Nothing here imports torch before a command needs it.
"""

import importlib
import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorarlhf.data import as_conversation, as_text, read_demonstrations, read_prompts
from lorarlhf.errors import UserError
from lorarlhf.parents import Parent, load_backbone, read_bare_run, read_parent
from lorarlhf.workspace import Workspace, create, is_workspace
from lorarlhf.workspace_commands import newest_run, open_for_chat

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.reading import Prompt
    from lorarlhf.settings import Settings

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a command hands back: `data` for --json, `text` for people, and the exit status."""

    data: Any
    text: str = ""
    status: int = 0


def table(rows: Sequence[tuple[str, Any]]) -> str:
    """Names and values, one a line."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:{width}}  {_figure(value)}" for name, value in rows)


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


# ---- demo


def demo(args: Namespace) -> Result:
    """The whole loop; prints its own lines as it goes."""
    from lorarlhf.demo import DemoOptions, run_demo
    from lorarlhf.settings import LIMITS

    names = ("out", "rater", "noise", "pairs", "updates", "seed", "base", "bits", "adapter_layers")
    options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    limits = LIMITS | {"pairs": ("2 or more", lambda x: x >= 2)}
    for name, value in options.items():
        if name in limits and not limits[name][1](value):
            raise UserError(f"--{name.replace('_', '-')} is {limits[name][0]}, not {value}.")
    try:
        return Result(run_demo(DemoOptions(quick=args.quick, resume=args.resume, **options)))
    except ValueError as error:
        if str(error).startswith("adapter_layers"):  # what it may be is known with the base only
            raise UserError(f"{error}.") from error
        raise


# ---- score


def score(args: Namespace) -> Result:
    """Scores of given answers by a run's reward role."""
    from lorarlhf.settings import resolve

    prompts, answers = _pairs_to_score(args)
    parent = read_parent(newest_run(args.run, "reward"), "reward", "RUN")
    settings = resolve("score", sets=args.set, flags={"base": args.base}, inherited=parent.given())
    backbone = load_backbone(settings)
    backbone.load_role("reward", parent.adapter)
    from lorarlhf.generation import check_chat_template
    from lorarlhf.rewards.role import score_answers

    if not settings.own["plain"]:
        prompts = [as_conversation(prompt) for prompt in prompts]
    check_chat_template(backbone, prompts)
    scores = score_answers(backbone, prompts, answers)
    lines = [
        f"{number:8.3f}  {_excerpt(answer)}" for number, answer in zip(scores, answers, strict=True)
    ]
    return Result(scores, "\n".join(["   score  answer", *lines]))


def _pairs_to_score(args: Namespace) -> tuple[list[Any], list[Any]]:
    if args.file is not None:
        if args.prompt is not None or args.answer:
            raise UserError("Give either --file, or --prompt with --answer, not both.")
        rows = read_demonstrations(args.file)
        if "completion" not in rows[0]:
            raise UserError(
                f"{args.file}: expected the columns prompt and completion, found "
                f"{', '.join(rows[0])}. Each row is one answer to score."
            )
        return [row["prompt"] for row in rows], [as_text(row["completion"]) for row in rows]
    if args.prompt is None or not args.answer:
        raise UserError(
            "Say what to score: --prompt TEXT and one or more --answer TEXT, or --file FILE with "
            "the columns prompt and completion."
        )
    return [args.prompt] * len(args.answer), list(args.answer)


def _excerpt(text: str, length: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 3] + "..."


# ---- chat


def chat(args: Namespace) -> Result:
    """One answer with --prompt, a conversation without it."""
    from lorarlhf.settings import resolve

    if args.prompt is None and args.json:
        raise UserError("--json answers one prompt: add --prompt TEXT.")
    if not (math.isfinite(args.temperature) and args.temperature >= 0):
        raise UserError(
            f"--temperature is 0 (always the likeliest word) or more, not {args.temperature}."
        )
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is 1 or more, not {args.max_new_tokens}.")
    project = open_for_chat(args)
    role, parents = _chat_parents(args)
    inherited = [*project, *(item for parent in parents.values() for item in parent.given())]
    settings = resolve("chat", sets=args.set, flags=_chat_flags(args), inherited=inherited)
    backbone = load_backbone(settings)
    for name, parent in parents.items():
        if name != "base":
            backbone.load_role(name, parent.adapter)
    roles = ["base", *(name for name in parents if name != "base")]
    if args.prompt is None:
        return _converse(args, backbone, settings, role, roles)
    return _answer_once(args, backbone, settings, role)


def _chat_flags(args: Namespace) -> Row:
    return {"base": args.base, "seed": args.seed}


def _chat_parents(args: Namespace) -> tuple[str, dict[str, Parent]]:
    """The role that answers, and the parent of each role that can be loaded."""
    role = args.role or ("base" if args.run is None else "policy")
    if args.run is None:
        if role != "base":
            raise UserError(f"--role {role} needs a run: lorarlhf chat RUN --role {role}.")
        return role, {}
    parents: dict[str, Parent] = {}
    for name in ("policy", "reference"):
        try:
            parent = read_parent(args.run, name, "RUN")
        except UserError:
            if name == role:
                raise
            continue
        if name != "reference" or parent.role == "reference":
            parents[name] = parent
    if role not in ("base", *parents):
        raise UserError(f"RUN {args.run} is one adapter, and not a {role}. Name the run's folder.")
    return role, parents or {"base": read_bare_run(args.run, "RUN")}


def _answer_once(args: Namespace, backbone: "Backbone", settings: "Settings", role: str) -> Result:
    from lorarlhf.chat import as_prompt, opening
    from lorarlhf.generation import generate

    messages = [*opening(args.system), {"role": "user", "content": args.prompt}]
    prompt: Prompt = as_prompt(messages, settings.own["plain"])
    (completion,) = generate(
        backbone,
        [prompt],
        role=role,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=settings.seed,
        max_prompt_tokens=settings.own["max_prompt_tokens"],
    )
    told = {"role": role, "prompt": args.prompt, "answer": completion.text}
    return Result(told | {"seed": settings.seed}, completion.text)


def _converse(
    args: Namespace,
    backbone: "Backbone",
    settings: "Settings",
    role: str,
    roles: list[str],
) -> Result:
    import contextlib

    from lorarlhf import chat as terminal

    with contextlib.suppress(ImportError):  # arrow keys in input(), where the system has it
        import readline  # noqa: F401
    conversation = terminal.Conversation(
        backbone,
        role,
        roles,
        system=args.system,
        plain=settings.own["plain"],
        temperature=args.temperature,
        max_new_tokens=args.max_new_tokens,
        max_prompt_tokens=settings.own["max_prompt_tokens"],
        seed=args.seed,
    )
    terminal.run(conversation)
    return Result(None)


# ---- doctor, ui


def doctor(args: Namespace) -> Result:
    """Checks of the machine and the installation; status 1 where something is wrong."""
    from lorarlhf.doctor import as_text, examine

    checks = examine()
    whole = all(check.ok for check in checks)
    data = {"ok": whole, "checks": [vars(check) for check in checks]}
    return Result(data, as_text(checks), status=0 if whole else 1)


def estimate(args: Namespace) -> Result:
    """Peak memory of the stages on a base."""
    from lorarlhf.estimating import as_text, run

    result = run(args)
    return Result(result, as_text(result))


def ui(args: Namespace) -> Result:
    """The rating pages, until Ctrl-C."""
    args.workspace = args.workspace or _project_here()
    if is_workspace(args.workspace):
        if args.base:
            raise UserError(
                f"{args.workspace} has its base already, in project.yaml; --base is for a project "
                "that is made on the way."
            )
    elif _agrees(f"{args.workspace} is no project yet."):
        create(args.workspace, base=args.base or "smollm2-135m")
    Workspace(args.workspace)  # before the slow imports
    # By name: the pages stand above the commands (docs/architecture.md), and need an extra.
    try:
        pages = importlib.import_module("lorarlhf_ui.app")
    except ModuleNotFoundError as error:
        raise UserError(
            f"The rating pages need {error.name}, which is not installed: "
            "pip install 'lorarlhf[ui]'."
        ) from error
    return Result(pages.main(args))


def _project_here() -> str:
    """The project in this folder, or the only one in a folder of this one; else a new one."""
    found = [p for p in (Path("."), *sorted(Path(".").glob("*/"))) if is_workspace(p)]
    if len(found) > 1 and found[0] != Path("."):
        names = ", ".join(str(path) for path in found)
        raise UserError(f"Say which project to open: lorarlhf ui FOLDER. Here are {names}.")
    return str(found[0]) if found else "my-assistant"


def _agrees(what: str) -> bool:
    """Ask at the terminal whether to make a project; False where nobody can answer."""
    if not sys.stdin.isatty():
        return False
    print(f"{what} Make it now, with the small base and everyday prompts? [Y/n] ", end="")
    return input().strip().lower() in ("", "y", "yes")


def train(args: Namespace) -> Result:
    """sft, reward, ppo, dpo and orpo."""
    from lorarlhf.training import train as run_training

    summary = run_training(args)
    rows = [(name, _in_words(value)) for name, value in summary.items()]
    rows = [(name, value) for name, value in rows if not isinstance(value, dict)]
    return Result(summary, table(rows))


def _in_words(value: Any) -> Any:
    """A list as its items, for the table that people read."""
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else value


def new(args: Namespace) -> Result:
    """Make a project."""
    space = create(
        args.folder,
        base=args.base,
        bits=args.bits,
        adapter_layers=args.adapter_layers,
        prompts=args.prompts,
    )
    prompts = len(read_prompts(space.prompts))
    text = (
        f"{space.folder} is ready: project.yaml holds its settings, prompts.jsonl {prompts} "
        f"prompts, and preferences.sqlite will hold the votes. Every command takes the folder."
    )
    return Result({"folder": str(space.folder), "prompts": prompts}, text)


def votes(args: Namespace) -> Result:
    """Counts of a project's votes, or files of them in and out."""
    from lorarlhf import votes_commands

    return Result(*votes_commands.votes(args))


def raters(args: Namespace) -> Result:
    """Who votes in a project, and who can log in."""
    from lorarlhf import votes_commands

    return Result(*votes_commands.raters(args))


COMMANDS = {
    "demo": demo,
    "new": new,
    "sft": train,
    "reward": train,
    "ppo": train,
    "dpo": train,
    "orpo": train,
    "chat": chat,
    "score": score,
    "votes": votes,
    "raters": raters,
    "estimate": estimate,
    "doctor": doctor,
    "ui": ui,
}
