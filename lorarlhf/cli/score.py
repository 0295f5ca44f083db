"""The command `score`: the reward role's scores of given answers."""

from argparse import Namespace
from typing import Any

from lorarlhf.cli.project_defaults import newest_run
from lorarlhf.cli.result import Result, excerpt
from lorarlhf.data.readers import as_conversation, as_text, read_demonstrations
from lorarlhf.project.lineage import read_source_run
from lorarlhf.project.load import load_backbone
from lorarlhf.runtime.errors import UserError


def score(args: Namespace) -> Result:
    """Scores of given answers by a run's reward role."""
    from lorarlhf.project.settings import resolve

    prompts, answers = _pairs_to_score(args)
    source = read_source_run(newest_run(args.run, "reward"), "reward", "RUN")
    settings = resolve(
        "score", sets=args.set, flags={"base": args.base}, inherited=source.settings_values()
    )
    backbone = load_backbone(settings)
    backbone.load_role("reward", source.adapter)
    from lorarlhf.backbone.generation import check_chat_template
    from lorarlhf.rewards.role import score_answers

    if not settings.own["plain"]:
        prompts = [as_conversation(prompt) for prompt in prompts]
    check_chat_template(backbone, prompts)
    if args.words:
        return _by_words(backbone, prompts, answers)
    scores = score_answers(backbone, prompts, answers)
    lines = [
        f"{number:8.3f}  {excerpt(answer, 90)}"
        for number, answer in zip(scores, answers, strict=True)
    ]
    return Result(scores, "\n".join(["   score  answer", *lines]))


def _by_words(backbone: Any, prompts: list[Any], answers: list[Any]) -> Result:
    """Scores with the shares of the answers' words."""
    from lorarlhf.rewards.token_shares import token_shares, words_of

    found = [token_shares(backbone, p, a) for p, a in zip(prompts, answers, strict=True)]
    lines: list[str] = []
    for shares in found:
        how = "" if shares.exact else ", by integrated gradients"
        lines += ["", f"{shares.score:8.3f}  the score{how}"]
        lines += [
            f"{share:+8.3f}  {text.strip() or repr(text)}" for text, share in words_of(shares)
        ]
        if shares.rest:
            lines.append(f"{shares.rest:+8.3f}  the rest: about the score of as many line breaks")
    data = [vars(shares) | {"words": words_of(shares)} for shares in found]
    return Result(data, "\n".join(lines[1:]))


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
