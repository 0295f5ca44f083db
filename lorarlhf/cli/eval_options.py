"""The options of the command `eval`. It imports nothing heavy."""

from argparse import ArgumentParser, _ArgumentGroup


def add_eval_options(sub: ArgumentParser) -> None:
    """Add what `eval` compares, who judges, and what it writes."""
    text = "runs with a policy, of one base; or a project: its newest policy of each stage"
    sub.add_argument("run", metavar="RUN", nargs="*", help=text)
    text = (
        "also compare the base's best of N answers, which the reward role picks (default: 4 in a "
    )
    text += "project with a reward role; 0: none)"
    sub.add_argument("--best-of", type=int, metavar="N", help=text)
    text = "held-out prompts (default: the project's, or the bundled ones)"
    sub.add_argument("--prompts", metavar="FILE", help=text)
    text = "answers to each prompt (default: 1)"
    sub.add_argument("--samples", type=int, metavar="N", default=1, help=text)

    judges = sub.add_argument_group("judges, of which there can be several")
    add_judges(judges)
    text = "whose reward role judges, and picks for --best-of (default: that of the project)"
    judges.add_argument("--reward", metavar="RUN", help=text)
    text = "another local model, asked about each pair twice, with the sides swapped"
    judges.add_argument("--judge-model", metavar="BASE", help=text)
    text = "what it is asked: a text with {prompt}, {first} and {second}"
    judges.add_argument("--judge-prompt", metavar="FILE", help=text)

    skills = sub.add_argument_group("short tasks")
    text = "tasks of your own: rows of kind, prompt and check (default: the bundled hundred)"
    skills.add_argument("--tasks", metavar="FILE", help=text)
    text = "status 1 if the share of tasks that are done falls by more than this"
    skills.add_argument("--limit-regressions", type=float, metavar="SHARE", help=text)
    skills.add_argument("--skills-only", action="store_true", help="only the short tasks")
    skills.add_argument("--no-skills", action="store_true", help="leave out the short tasks")

    text = "of the answers to prompts; tasks get the likeliest answer (default: 0.7)"
    sub.add_argument("--temperature", type=float, default=0.7, help=text)
    text = "longest answer (default: 128; 64 for tasks)"
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help=text)
    text = "folder of the results (default: eval in the project, or runs/eval; a new one each time)"
    sub.add_argument("--out", metavar="DIR", help=text)
    sub.add_argument("--seed", type=int, help="seed of all random numbers (default: 0)")
    sub.add_argument("--base", help="load this base instead of the one that the runs name")


def add_judges(group: _ArgumentGroup) -> None:
    """Add simulated raters and functions, which `compare-methods` takes, too."""
    text = "a simulated rater's rule: cheerful, brief or plain; may be repeated"
    group.add_argument("--rater", metavar="NAME", action="append", default=[], help=text)
    group.add_argument(
        "--judge-function",
        metavar="FILE.py:NAME",
        action="append",
        default=[],
        help="a Python function that scores answers; may be repeated",
    )
