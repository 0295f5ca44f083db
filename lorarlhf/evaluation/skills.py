"""What a model can still do: short tasks whose answers a rule can check, before and after tuning.

The bundled hundred (`recipes/data/skills.jsonl`) are of five kinds: arithmetic, words, facts, form,
and nonsense, which a model has to refuse. They measure what tuning cost, not how able a model is.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorarlhf.data.readers import bundled, read_rows
from lorarlhf.evaluation.win_rate import binomial_test, bootstrap_interval, wilson_interval
from lorarlhf.runtime.errors import UserError

ALL = "all"
Check = dict[str, Any]

_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")
_SENTENCE = re.compile(r"[.!?]+[\"')\u201d\u2019]*(?:\s|$)|[\u3002\uff01\uff1f]")
SPELLED = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
_SPELLED = re.compile(rf"\b(?:{'|'.join(SPELLED)})\b", re.IGNORECASE)
_FENCE = re.compile(r"^```(?:json)?\s*|\s*```$")


@dataclass(frozen=True)
class Task:
    """A task with the rule that its answer has to follow."""

    kind: str
    prompt: str
    check: Check


@dataclass(frozen=True)
class SkillChange:
    """One kind of tasks, before and after.

    Attributes:
        tasks: their number.
        before, after: how many were done.
        low, high: the 95% interval of the change of the share, from -1 to 1 (paired bootstrap over
            the tasks; somewhat too narrow where few change).
        p: the chance of such a change, or a larger one, if nothing changed but by luck: the exact
            test of McNemar, on the tasks that only one of the two did.
    """

    kind: str
    tasks: int
    before: int
    after: int
    low: float
    high: float
    p: float

    @property
    def change(self) -> float:
        """Of the share of tasks that were done, from -1 to 1."""
        return (self.after - self.before) / self.tasks


def read_tasks(path: str | Path | None = None) -> list[Task]:
    """The tasks of a file, by default the bundled ones.

    Raises:
        UserError: a row without `kind`, `prompt` and `check`, or with a check that is not known.
    """
    file = Path(path) if path is not None else bundled("skills")
    tasks = []
    for line, row in read_rows(file):
        for field, kind in (("kind", str), ("prompt", str), ("check", dict)):
            if not isinstance(row.get(field), kind) or not row[field]:
                raise UserError(
                    f'{file}, line {line}: the field "{field}" is missing or of another type. A '
                    "task has the texts kind and prompt, and the object check."
                )
        if wrong := _wrong(row["check"]):
            raise UserError(f"{file}, line {line}: {wrong}")
        tasks.append(Task(row["kind"], row["prompt"], row["check"]))
    return tasks


def _wrong(check: Check) -> str | None:
    """What is wrong with a check, in a sentence; None if nothing is."""
    if unknown := set(check) - {*CHECKS, "cased"}:
        return f"there is no check {min(unknown)}. There are {', '.join(CHECKS)}."
    if not set(check) & set(CHECKS):
        return f"the check has no rule. There are {', '.join(CHECKS)}."
    for name, value in check.items():
        if not SHAPES.get(name, lambda value: True)(value):
            return f"{name} is {WORDS[name]}, and not {value!r}."
    return None


def _is_pattern(value: Any) -> bool:
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(x, int) for x in value)


def passes(answer: str, check: Check) -> bool:
    """Whether an answer follows all rules; typographic apostrophes count as plain ones."""
    answer = answer.replace("\u2019", "'")
    return all(CHECKS[name](answer, check) for name in check if name in CHECKS)


def _number(answer: str, check: Check) -> bool:
    """The number stands first or last among those of the answer, as in a sum or a sentence."""
    digits = _SPELLED.sub(lambda found: str(SPELLED.index(found[0].lower())), answer)
    found = [float(text.replace(",", "")) for text in _NUMBER.findall(digits)]
    return bool(found) and check["number"] in (found[0], found[-1])


def _contains(answer: str, check: Check) -> bool:
    words = (rf"(?<!\w){re.escape(word)}(?!\w)" for word in check["contains"])
    return any(re.search(word, answer, re.IGNORECASE) for word in words)


def _regex(answer: str, check: Check) -> bool:
    flags = 0 if check.get("cased") else re.IGNORECASE
    return re.search(check["regex"], answer, flags) is not None


def _json(answer: str, check: Check) -> bool:
    try:
        return bool(json.loads(_FENCE.sub("", answer.strip())) == check["json"])
    except ValueError:
        return False


def _between(name: str, count: Callable[[str], int]) -> Callable[[str, Check], bool]:
    def holds(answer: str, check: Check) -> bool:
        least, most = check[name]
        return bool(least <= count(answer.strip()) <= most)

    return holds


CHECKS: dict[str, Callable[[str, Check], bool]] = {
    "number": _number,
    "contains": _contains,
    "regex": _regex,
    "json": _json,
    "words": _between("words", lambda text: len(text.split())),
    "lines": _between("lines", lambda text: sum(bool(line.strip()) for line in text.split("\n"))),
    "sentences": _between("sentences", lambda text: len(_SENTENCE.findall(text))),
}


SHAPES: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "contains": lambda value: (
        isinstance(value, list) and bool(value) and all(isinstance(x, str) for x in value)
    ),
    "regex": _is_pattern,
    **dict.fromkeys(("words", "lines", "sentences"), _is_range),
}
WORDS = {
    "number": "a number",
    "contains": "a list of texts, one of which has to be there",
    "regex": "a regular expression",
    **dict.fromkeys(("words", "lines", "sentences"), "two whole numbers, the least and the most"),
}


def compare_skills(
    tasks: Sequence[Task], before: Sequence[str], after: Sequence[str], seed: int = 0
) -> list[SkillChange]:
    """The change of each kind, and of all tasks together as the last one."""
    done = [
        (passes(one, task.check), passes(other, task.check))
        for task, one, other in zip(tasks, before, after, strict=True)
    ]
    kinds = [*dict.fromkeys(task.kind for task in tasks), ALL]
    changes = []
    for kind in kinds:
        pairs = [p for task, p in zip(tasks, done, strict=True) if kind in (task.kind, ALL)]
        low, high = _interval(pairs, seed)
        first, second = (sum(column) for column in zip(*pairs, strict=True))
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        p = binomial_test(lost, gained + lost)
        changes.append(SkillChange(kind, len(pairs), first, second, low, high, p))
    return changes


def _interval(pairs: Sequence[tuple[bool, bool]], seed: int) -> tuple[float, float]:
    if all(a == b for a, b in pairs):  # nothing changed: as surely as so many tasks can tell
        most = wilson_interval(0.0, len(pairs))[1]
        return -most, most
    low, high = bootstrap_interval(
        [(after - before + 1) / 2 for before, after in pairs], range(len(pairs)), seed
    )
    return 2 * low - 1, 2 * high - 1
