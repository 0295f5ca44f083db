"""The command `chat`: one answer with --prompt, a conversation without it."""

import math
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.project_defaults import newest_run, open_for_chat
from lorarlhf.cli.result import Result
from lorarlhf.project.lineage import (
    SourceRun,
    check_same_base,
    read_any_source_run,
    read_source_run,
)
from lorarlhf.project.load import load_backbone
from lorarlhf.runtime.errors import UserError

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.tokenizer import Prompt
    from lorarlhf.project.settings import Settings

Row = dict[str, Any]


def chat(args: Namespace) -> Result:
    """One answer with --prompt, a conversation without it."""
    from lorarlhf.project.settings import resolve

    if args.prompt is None and args.json:
        raise UserError("--json answers one prompt: add --prompt TEXT.")
    if not (math.isfinite(args.temperature) and args.temperature >= 0):
        raise UserError(
            f"--temperature is 0 (always the likeliest word) or more, not {args.temperature}."
        )
    if args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is 1 or more, not {args.max_new_tokens}.")
    if args.best_of < 1:
        raise UserError(f"--best-of is 1 or more, not {args.best_of}.")
    if args.best_of > 1 and args.temperature == 0:
        raise UserError("--best-of needs answers that differ: give a --temperature above 0.")
    if args.reward is not None and args.best_of == 1:
        raise UserError("--reward picks the best of several answers: add --best-of N.")
    reward = _reward_source(args)
    project = open_for_chat(args)
    role, sources = _chat_sources(args)
    if reward is not None:
        # The policy's settings come last, where they count.
        others = {name: source for name, source in sources.items() if name != "base"}
        sources = {"reward": reward, **others}
    inherited = [
        *project,
        *(item for source in sources.values() for item in source.settings_values()),
    ]
    settings = resolve("chat", sets=args.set, flags=_chat_flags(args), inherited=inherited)
    check_same_base(list(sources.values()), "base" in settings.given)
    backbone = load_backbone(settings)
    for name, source in sources.items():
        if name != "base":
            backbone.load_role(name, source.adapter)
    roles = ["base", *(name for name in sources if name not in ("base", "reward"))]
    if args.prompt is None:
        return _converse(args, backbone, settings, role, roles)
    return _answer_once(args, backbone, settings, role)


def _chat_flags(args: Namespace) -> Row:
    return {"base": args.base, "seed": args.seed}


def _reward_source(args: Namespace) -> SourceRun | None:
    """The run whose reward role picks, --reward or RUN; None without --best-of."""
    if args.best_of == 1:
        return None
    named = args.reward or args.run
    if named is None:
        raise UserError("--best-of needs votes to pick by: name a run with --reward RUN.")
    option = "RUN" if args.reward is None else "--reward"
    return read_source_run(newest_run(named, "reward"), "reward", option)


def _chat_sources(args: Namespace) -> tuple[str, dict[str, SourceRun]]:
    """The role that answers, and the source run of each role that can be loaded."""
    role = args.role or ("base" if args.run is None else "policy")
    if args.run is None:
        if role != "base":
            raise UserError(f"--role {role} needs a run: lorarlhf chat RUN --role {role}.")
        return role, {}
    sources: dict[str, SourceRun] = {}
    for name in ("policy", "reference"):
        try:
            source = read_source_run(args.run, name, "RUN")
        except UserError:
            if name == role:
                raise
            continue
        if name != "reference" or source.role == "reference":
            sources[name] = source
    if role not in ("base", *sources):
        raise UserError(f"RUN {args.run} is one adapter, and not a {role}. Name the run's folder.")
    return role, sources or {"base": read_any_source_run(args.run, "RUN")}


def _answer_once(args: Namespace, backbone: "Backbone", settings: "Settings", role: str) -> Result:
    from lorarlhf.backbone.generation import generate
    from lorarlhf.cli.conversation import as_prompt, opening

    messages = [*opening(args.system), {"role": "user", "content": args.prompt}]
    prompt: Prompt = as_prompt(messages, settings.own["plain"])
    sampling: Row = {
        "role": role,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "seed": settings.seed,
        "max_prompt_tokens": settings.own["max_prompt_tokens"],
    }
    result: Row = {"role": role, "prompt": args.prompt}
    if args.best_of == 1:
        (completion,) = generate(backbone, [prompt], **sampling)
        result |= {"answer": completion.text, "seed": settings.seed}
        return Result(result, completion.text)
    from lorarlhf.rewards.best_of import best_of, kl_bound

    (found,) = best_of(backbone, [prompt], args.best_of, **sampling)
    result |= {"answer": found.answer.text, "seed": settings.seed}
    result |= {"answers": [one.text for one in found.answers]}
    result |= {"scores": found.scores, "kl_bound": kl_bound(args.best_of)}
    return Result(result, found.answer.text)


def _converse(
    args: Namespace,
    backbone: "Backbone",
    settings: "Settings",
    role: str,
    roles: list[str],
) -> Result:
    import contextlib

    from lorarlhf.cli import conversation as terminal

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
        best_of=args.best_of,
    )
    terminal.run(conversation)
    return Result(None)
