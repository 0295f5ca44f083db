"""What the tests of blind comparisons share: held-out prompts, answers, and a rater's steps."""

from collections.abc import Callable
from typing import Any

from lorarlhf.project.project import Project
from lorarlhf.runtime.files import write_jsonl
from lorarlhf_ui.compare import HELD_OUT
from tests.pages import Bench, Request, until

OpenBench = Callable[..., Bench]
HELD = [f"Held out {number}?" for number in range(6)]


def held_out(project: Project, prompts: list[str]) -> None:
    write_jsonl(project.folder / HELD_OUT, [{"prompt": prompt} for prompt in prompts])


def answers(asked: Request) -> list[str]:
    names = {"0001-sft": "Red.", "0002-dpo": "Blue.", "base": "Green."}
    return [text for model in asked.models for name, text in names.items() if name in model]


def start(bench: Bench, first: str = "0001-sft", second: str = "0002-dpo", wanted: int = 6) -> Any:
    """A test whose answers are all written."""
    test = bench.comparisons.start(first, second, wanted)
    until(lambda: bench.comparisons.made(test) == wanted)
    return test


def ranked(view: dict[str, Any], best: str) -> dict[str, Any]:
    """The verdict that an answer is the better one, by its place on the screen."""
    place = [answer["text"] for answer in view["answers"]].index(best)
    return {"verdict": "ranked", "ranking": [[place], [1 - place]]}


def vote_all(bench: Bench, verdicts: list[str], rater: str = "ann") -> dict[str, Any]:
    """Votes on the next items: a text that is better, or a verdict."""
    view = bench.comparisons.begin(rater)
    for verdict in verdicts:
        ballot = ranked(view, verdict) if verdict.endswith(".") else {"verdict": verdict}
        view = bench.comparisons.vote(rater, view["token"], ballot, 800)
    return view
