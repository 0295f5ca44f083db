"""Answers that nobody has judged, from elsewhere, into a store, where raters find each once."""

import json
from collections.abc import Sequence

from lorarlhf.preferences.merge import Merged, prompt_spellings
from lorarlhf.preferences.records import MOST_COMPLETIONS, Candidates
from lorarlhf.preferences.store import Store


def merge_candidates(store: Store, found: Sequence[Candidates]) -> Merged:
    """Add answers to be rated, as items of up to six; those of a prompt that are there stay single.

    Answers that were made since an earlier import are compared with the one that was kept, or with
    another one of the same prompt.

    Args:
        found: as checked by `imports.read_votes`.
    """
    added = there = 0
    with store.write():
        for one in found:
            known = _known_texts(store, one)
            new = [answer for answer in one.completions if answer[0] not in known]
            if not new:
                there += 1
                continue
            for answers in _parts(_with_a_known_one(one, new)):
                store.add_item(one.prompt, answers, origin=one.origin)
            added += 1
    return Merged(added, there)


def _known_texts(store: Store, one: Candidates) -> set[str]:
    """The texts of all answers to this prompt that raters compare or have compared."""
    rows = store.rows(
        "SELECT c.text FROM prompt q JOIN item i ON i.prompt_id = q.id AND i.purpose = 'train' "
        "JOIN item_completion ic ON ic.item_id = i.id JOIN completion c ON c.id = ic.completion_id "
        "WHERE q.messages IN (SELECT value FROM json_each(?)) AND EXISTS "
        "(SELECT 1 FROM item_completion o WHERE o.item_id = i.id AND o.position = 1)",
        (json.dumps(prompt_spellings(one.prompt)),),
    )
    return {row["text"] for row in rows}


def _with_a_known_one(one: Candidates, new: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """New answers, with one that is there if they are compared with it."""
    if len(new) == len(one.completions):
        return new
    old = [answer for answer in one.completions if answer not in new]
    kept = [answer for answer in old if answer[0] == one.kept]
    return [*(kept or old)[:1], *new]


def _parts(answers: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Answers in as few parts as an item allows, of nearly the same size."""
    count = -(-len(answers) // MOST_COMPLETIONS)
    return [answers[start::count] for start in range(count)]
