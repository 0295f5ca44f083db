"""Simulated raters with a known bias: how often the rater report finds it, and how often it errs.

    .venv/bin/python benchmarks/planted_biases.py
    .venv/bin/python benchmarks/planted_biases.py --sets 50 --votes 150

Each set has the votes of one rater on pairs of answers that differ in length and form at random.
Apart from the bias the rater's taste has nothing to do with either, and one vote in ten is a tie. A
bias is found if the report names it; a false alarm is anything else that it names.
"""

import argparse
import math
import random
from collections.abc import Callable

from lorarlhf.evaluation.rater_report import RaterReport, rater_report
from lorarlhf.evaluation.vote_causes import CAUSES, LEFT
from lorarlhf.preferences.records import RANKED, TIE, Verdict, Vote

BIASES: dict[str, dict[str, float]] = {
    "none": {},
    LEFT: {LEFT: 0.7},  # of the log odds: two to one for the left one, other things being equal
    "longer": {"longer": 0.7},  # for each doubling
    "a list": {"a list": 1.2},
    "a heading": {"a heading": 2.0},
    "bold": {"bold": 1.2},
    "code": {"code": 2.0},
    "an exclamation mark": {"an exclamation mark": 1.0},
    "a hedging opening": {"a hedging opening": -2.0},
    "lazy": {},  # a third of the votes in a second or two
    "contradictory": {},  # asked again, the verdict is a coin's
}
REPEATS = 30  # of 300 votes: twice as many as the pages ask
WORDS = ("the", "cat", "sat", "on", "mats", "and", "looked", "at", "rain", "over", "green", "hills")


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--biases", nargs="*", default=list(BIASES), choices=list(BIASES))
    args = parser.parse_args()
    print("| planted | found | anything else named |\n|---|---|---|")
    for bias in args.biases:
        reports = [
            rater_report(simulated(bias, args.votes, seed), "ann") for seed in range(args.sets)
        ]
        named = [alarms(report) for report in reports]
        found = sum(bias in names for names in named) / args.sets
        other = sum(bool(names - {bias}) for names in named) / args.sets
        print(f"| {bias} | {f'{found:.0%}' if bias != 'none' else ''} | {other:.0%} |", flush=True)


def alarms(report: RaterReport) -> set[str]:
    """What a report names."""
    names = {cause.name for cause in report.causes if cause.found}
    names |= {"lazy"} if report.hurried else set()
    return names | ({"contradictory"} if report.contradictory else set())


def simulated(bias: str, count: int, seed: int) -> list[Vote]:
    """The votes of one rater; the last of them are repeats of earlier ones, with sides swapped."""
    draw = random.Random(f"{bias} {seed}")
    votes: list[Vote] = []
    for place in range(count):
        texts = [text(draw), text(draw)]
        shown = draw.sample([0, 1], 2)
        votes.append(vote(draw, bias, place, texts, shown, taste=draw.gauss(0, 1)))
    for place in range(REPEATS):
        first = votes[place]
        shown = first.shown[::-1]
        again = first.verdict
        if bias == "contradictory" or draw.random() < 0.1:
            again = Verdict(RANKED, draw.choice([[[0], [1]], [[1], [0]]]))
        votes.append(made(count + place, first.completions, shown, again, draw, "none", place))
    return votes


def text(draw: random.Random) -> str:
    """An answer with form at random."""
    words = [
        draw.choice(WORDS) for _ in range(int(math.exp(draw.uniform(math.log(15), math.log(120)))))
    ]
    body = " ".join(words)
    body += "!" if draw.random() < 0.3 else "."
    if draw.random() < 0.25:
        body += "\n- " + " ".join(words[:4]) + "\n- " + " ".join(words[4:8])
    if draw.random() < 0.12:
        body = "## Answer\n" + body
    if draw.random() < 0.25:
        body = "**" + words[0] + "** " + body
    if draw.random() < 0.12:
        body += " `" + words[1] + "`"
    return ("I think " if draw.random() < 0.15 else "") + body


def vote(
    draw: random.Random, bias: str, place: int, texts: list[str], shown: list[int], taste: float
) -> Vote:
    """A vote by the logit of taste and bias."""
    odds = taste
    for name, weight in BIASES[bias].items():
        if name == LEFT:
            odds += weight * (1 if shown[0] == 0 else -1)
        else:
            cause: Callable[[str], float] = CAUSES[name]
            odds += weight * (cause(texts[0]) - cause(texts[1]))
    best = 0 if draw.random() < 1 / (1 + math.exp(-odds)) else 1
    verdict = Verdict(RANKED, [[best], [1 - best]])
    verdict = Verdict(TIE) if draw.random() < 0.1 else verdict
    return made(place, texts, shown, verdict, draw, bias, None)


def made(
    number: int,
    texts: list[str],
    shown: list[int],
    verdict: Verdict,
    draw: random.Random,
    bias: str,
    repeats: int | None,
) -> Vote:
    """A vote with all its fields."""
    words = sum(len(text.split()) for text in texts)
    seconds = words / 4 * math.exp(draw.gauss(0.3, 0.3))
    if bias == "lazy" and draw.random() < 1 / 3:
        seconds = draw.uniform(0.8, 2)
    return Vote(
        id=number,
        rater="ann",
        presentation_id=number,
        item_id=number if repeats is None else repeats,
        purpose="train",
        prompt=f"Question {number if repeats is None else repeats}?",
        completions=texts,
        sources=["base", "base"],
        shown=shown,
        verdict=verdict,
        milliseconds=round(1000 * seconds),
        created_at=number,
        sampling=[{}, {}],
        repeats=repeats,
        origin={},
    )


if __name__ == "__main__":
    main()
