"""Label Studio's JSON export of a pairwise comparison: tasks with annotations, a vote each.

A task's data has the prompt and the two answers under names of the project's own. The answers are
those that the comparison names, or else the two fields that are named like answers.
"""

import re
from typing import Any

from lorarlhf.preferences.argilla_fields import find_prompt, plain, response_names
from lorarlhf.preferences.fields import (
    UNNAMED,
    Left,
    Parsed,
    Row,
    RowFault,
    answer_of,
    expected,
    list_of,
    name_of,
    need,
    object_of,
    text_of,
    time_of,
)
from lorarlhf.preferences.import_argilla import SAID
from lorarlhf.preferences.records import RANKED, ImportedVote, Prompt, Verdict

COLUMNS = {"annotations", "data"}
NOT_ANNOTATED = "tasks that nobody annotated"
CANCELLED = "annotations that were skipped"
NO_CHOICE = "annotations that choose neither answer"
_TEXT = re.compile(r"te?xt[-_ ]?(?:\d+|[a-h])|(?:left|right)", re.IGNORECASE)
"""Names of the answers in Label Studio's own template, beside those that other tools use."""
LONGEST_MINUTES = 24 * 60


def label_studio(row: Row) -> Parsed:
    """A task with its annotations."""
    need(row, *sorted(COLUMNS))
    data = {
        name: value
        for name, value in object_of(row["data"], "data").items()
        if isinstance(value, str | list)
    }
    found = list_of(row["annotations"], "annotations")
    annotations = [object_of(one, "annotations") for one in found]
    if not annotations:
        yield Left(NOT_ANNOTATED)
        return
    for one in annotations:
        if one.get("was_cancelled") is True:
            yield Left(CANCELLED)
            continue
        results = [object_of(result, "result") for result in list_of(one.get("result"), "result")]
        verdict = _verdict(results)
        if verdict is None:
            yield Left(NO_CHOICE)
            continue
        prompt, answers = _compared(data, results)
        yield ImportedVote(
            prompt=prompt,
            completions=answers,
            verdict=verdict,
            rater=_annotator(one.get("completed_by")),
            item=name_of(row.get("id"), "id", "") or None,
            shown=(0, 1),
            milliseconds=_milliseconds(one.get("lead_time")),
            created_at=time_of(one.get("created_at"), "created_at"),
            changed_at=time_of(one.get("updated_at"), "updated_at"),
            key=_key(one),
        )


def _key(annotation: Row) -> str | None:
    """The annotation's name. Every server counts from one, so the number alone is not enough."""
    name = name_of(annotation.get("unique_id"), "unique_id", "")
    number = name_of(annotation.get("id"), "id", "")
    if not name and number and annotation.get("created_at"):
        name = f"{number} {name_of(annotation['created_at'], 'created_at')}"
    return f"label-studio {name}" if name else None


def _verdict(results: list[Row]) -> Verdict | None:
    """What the results of an annotation say; None if they prefer nothing and name no tie."""
    values = [(one.get("type"), object_of(one.get("value") or {}, "value")) for one in results]
    texts = [text for kind, value in values if kind == "textarea" for text in _texts(value, "text")]
    note = "\n".join(text for text in texts if text.strip()) or None
    for kind, value in values:
        if kind == "pairwise":
            selected = value.get("selected")
            if selected not in ("left", "right"):
                raise expected("selected", "left or right", selected)
            return Verdict(RANKED, [[0], [1]] if selected == "left" else [[1], [0]], note=note)
    said = [name for kind, value in values if kind == "choices" for name in _texts(value, kind)]
    tie = next((SAID[plain(name)] for name in said if plain(name) in SAID), None)
    return None if tie is None else Verdict(tie.verdict, note=note)


def _texts(value: Row, name: str) -> list[str]:
    found = value.get(name)
    return [text_of(text, name) for text in (found if isinstance(found, list) else [found])]


def _compared(data: Row, results: list[Row]) -> tuple[Prompt, tuple[tuple[str, str], ...]]:
    """The prompt and the two answers, left and right."""
    names = _answer_names(data, results)
    fields = {name: value for name, value in data.items() if name not in names}
    prompt, _ = find_prompt(fields)
    return prompt, tuple((answer_of(data[name], f"data.{name}"), UNNAMED) for name in names)


def _answer_names(data: Row, results: list[Row]) -> list[str]:
    for one in results:
        named = one.get("to_name")
        if one.get("type") == "pairwise" and isinstance(named, str):
            names = [name.strip() for name in named.split(",")]
            if len(names) == 2 and set(names) <= data.keys():
                return names
    # By name, since a file may have them in any order, and the first one is on the left.
    names = sorted(name for name in data if _TEXT.fullmatch(name))
    if len(names) != 2:
        names = sorted(response_names(data))
    if len(names) != 2:
        found = "found " + ", ".join(f'"{name}"' for name in names)
        raise RowFault(f'field "data": expected two answers, such as answer1 and answer2, {found}')
    return names


def _annotator(value: Any) -> str:
    """The rater: by number, since the e-mail address beside it is nobody else's business."""
    number = value.get("id") if isinstance(value, dict) else value
    name = name_of(number, "completed_by", "")
    return f"annotator {name}" if name else "annotator"


def _milliseconds(value: Any) -> int | None:
    """The seconds that an annotation took; None if it lay open for days."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return round(1000 * value) if 0 <= value <= 60 * LONGEST_MINUTES else None
