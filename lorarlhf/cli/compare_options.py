"""The options of the command `compare-methods`. It imports nothing heavy."""

from argparse import ArgumentParser

from lorarlhf.cli.eval_options import add_judges

MINUTES = 5.0


def add_compare_options(sub: ArgumentParser) -> None:
    """Add what is trained, for how long, and who judges."""
    sub.add_argument("project", metavar="PROJECT", help="the project whose votes are learned from")
    text = (
        "sft, dpo, orpo, kto, ppo, rloo, grpo, iterated-dpo and best-of-N (default: all that the "
        "votes suffice for, and best-of-4)"
    )
    sub.add_argument("--methods", metavar="NAME", nargs="+", help=text)
    text = f"how long each method trains, at most (default: {MINUTES:g})"
    sub.add_argument("--minutes", type=float, metavar="M", default=MINUTES, help=text)
    text = "settings of the methods, in a block for each of them or for its stage"
    sub.add_argument("--config", metavar="FILE.yaml", help=text)
    text = "the run that all start from (default: the newest supervised run; base: from none)"
    sub.add_argument("--init", metavar="RUN", help=text)
    text = "the reward role of the methods that need one (default: a new one, from the same votes)"
    sub.add_argument("--reward", metavar="RUN", help=text)
    text = "folder of the results and the runs; the same one again goes on where it stopped"
    sub.add_argument("--out", metavar="DIR", help=text)
    sub.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")

    judges = sub.add_argument_group("judges, besides the reward role, which is not independent")
    add_judges(judges)
    text = "held-out prompts (default: the project's, or the bundled ones)"
    judges.add_argument("--prompts", metavar="FILE", help=text)
    text = "answers to each prompt (default: 1)"
    judges.add_argument("--samples", type=int, metavar="N", default=1, help=text)
    text = "longest answer (default: 128)"
    judges.add_argument("--max-new-tokens", type=int, metavar="N", help=text)
    text = "leave out the short tasks, which show what was forgotten"
    judges.add_argument("--no-skills", action="store_true", help=text)
