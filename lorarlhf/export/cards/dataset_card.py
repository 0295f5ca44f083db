"""The card of a data set of votes: what is in it, who voted, how far to trust it."""

import time

from lorarlhf import __version__
from lorarlhf.export.cards.markdown import bullets, card, fenced, many, plain, table
from lorarlhf.export.cards.run_facts import without_paths
from lorarlhf.export.cards.vote_facts import agreement_in_words, raters_in_words
from lorarlhf.export.dataset import TRAIN, Dataset
from lorarlhf.preferences.records import BOTH_BAD, BOTH_GOOD, RANKED, SKIP, TIE
from lorarlhf.runtime.files import Row

VERDICTS = {
    RANKED: "name a better answer",
    TIE: "find the answers equal",
    BOTH_GOOD: "call all answers good",
    BOTH_BAD: "call all answers bad",
    SKIP: "skip the comparison",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"))
COLUMNS = {
    "prompt": "the conversation before the answers, as messages with `role` and `content`",
    "chosen": "the better answer, as one message of the assistant",
    "rejected": "the other answer, in the same form",
    "margin": "how much better: 1 slightly, 2 clearly, 3 much, or a number from an imported file; "
    "0 where nobody said it",
    "group": "the number of the comparison: rows of one ranking share it, and so do the votes of "
    "several raters on the same answers",
    "weight": "1 divided by the number of rows that this vote gave",
    "note": "what the rater wrote about the vote; empty where there is nothing",
    "rater": "who voted",
}


def dataset_card(data: Dataset, name: str, base: str = "") -> str:
    """The card as Markdown with the hub's YAML head.

    Args:
        name: of the data set.
        base: the base whose answers were rated; "" if not known.
    """
    votes, rows = data.facts.votes, len(data.rows)
    what = (
        f"{many(rows, 'preference pair')} from {many(votes, 'vote')} on "
        f"{many(data.facts.prompts, 'prompt')}, in TRL's shape: two answers to a prompt, and which "
        f"one a rater preferred. Written with lorarlhf {__version__} on {time.strftime('%Y-%m-%d')}"
        ". Everything below was counted in the votes themselves."
    )
    parts = [
        ("", what),
        ("Load it", fenced(_LOAD, "python")),
        ("Columns", _columns(data.rows[0])),
        ("Votes", _votes(data)),
        ("Raters", _raters(data)),
        ("How it was rated", _instructions(data)),
        ("Answers", _answers(data, base)),
        ("What is left out", _left_out(data)),
        ("Licence", _LICENCE),
        ("Limits", bullets(_limits(data))),
    ]
    return card(_head(rows, name), name, parts)


def _head(rows: int, name: str) -> Row:
    size = next((words for below, words in SIZES if rows < below), "n>1M")
    files = [{"split": "train", "path": TRAIN}]
    return {
        "pretty_name": name,
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["preference", "rlhf", "dpo", "trl", "lorarlhf"],
        "configs": [{"config_name": "default", "data_files": files}],
    }


_LOAD = """from datasets import load_dataset

votes = load_dataset("FOLDER_OR_REPOSITORY", split="train")
"""
_LICENCE = (
    "None was chosen yet. Whoever publishes this data set decides: put a line such as "
    "`license: cc-by-4.0` into the head of this file, and its name here. Without one, others may "
    "not use it. The licence of the models that wrote the answers may restrict what is possible."
)


_THUMBS = "a good and a bad one by the same rater on the same prompt give a row"


def _columns(row: Row) -> str:
    return table(("column", "what it is"), [(f"`{name}`", COLUMNS[name]) for name in row])


def _votes(data: Dataset) -> str:
    facts = data.facts
    lines = [(f"{facts.verdicts[name]:,}", words) for name, words in VERDICTS.items()]
    lines.append((f"{facts.singles:,}", f"are on one answer alone; {_THUMBS}"))
    lines.append((f"{facts.strengths:,}", "say how much better an answer is"))
    lines.append((f"{facts.edited:,}", "have an answer that the rater wrote; it is the better one"))
    return table(("votes", "that"), [line for line in lines if line[0] != "0"])


def _raters(data: Dataset) -> str:
    lines = [f"{raters_in_words(data.facts)}.", *agreement_in_words(data.facts)]
    if data.with_raters:
        names = [f"{plain(name)} ({count:,})" for name, count in data.facts.raters.items()]
        lines.append(f"By name: {', '.join(names)}.")
    return bullets(lines)


def _instructions(data: Dataset) -> str:
    """What raters were told: the words of the pages; of imported votes nothing is known."""
    parts = []
    if data.facts.on_pages:
        parts.append(
            "On the rating pages of lorarlhf, a rater saw a prompt and its answers side by side, "
            "without the names of the models, in an order drawn for each rater. The instruction "
            "was: “Read the prompt and its two answers, and choose the better one”, or to "
            "rank them where there were more. A rater could also call them equal, all good or all "
            "bad, skip them, say by how much one is better, add a note, and write a better answer."
        )
    if data.facts.on_pages < data.facts.votes:
        parts.append("How the imported votes were asked for is not recorded.")
    parts.append("Anything else that raters were told is not recorded here: add it.")
    return "\n\n".join(parts)


def _answers(data: Dataset, base: str) -> str:
    names = sorted(data.sources.items(), key=lambda entry: -entry[1])
    rows = [(plain(without_paths(name)), f"{count:,}") for name, count in names]
    told = f"`base` is {plain(base)}.\n\n" if base and "base" in data.sources else ""
    return told + table(("written by", "answers"), rows)


def _left_out(data: Dataset) -> str:
    lines = [f"{count:,} {plain(why)}" for why, count in data.left_out.items()]
    if not data.with_raters:
        lines.append("the raters' names")
    if not data.with_notes:
        lines.append(f"the raters' notes ({data.facts.notes:,})")
    lines.append("when and how fast a vote was cast, and on which side an answer was shown")
    return bullets(lines)


def _limits(data: Dataset) -> list[str]:
    facts = data.facts
    found = [
        f"It holds the taste of {many(len(facts.raters), 'rater')}, and nothing here says how "
        "general that is.",
        "Votes say which answer was preferred, not whether it is true or harmless.",
        "Prompts, answers and the answers that raters wrote are as they were typed: they may "
        "contain what nobody meant to publish.",
    ]
    if any(facts.verdicts[name] for name in (TIE, BOTH_GOOD, BOTH_BAD)):
        thumbs = f", but of those on one answer alone {_THUMBS}" if facts.singles else ""
        found.append(f"Votes that name no better answer are only counted here{thumbs}.")
    return found
