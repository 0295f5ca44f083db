"""What a person should know about votes that are imported: what they may not have meant."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from lorarlhf.preferences.exports import as_plain
from lorarlhf.preferences.records import RANKED, Candidates, ImportedVote

EQUAL = "votes that prefer one of equal answers"
EMPTY = "votes with an empty answer, on which nothing is trained"
TWINS = "votes that prefer one of answers that differ only in blanks or Unicode form"
REPEATED = "votes whose answers all begin with the text of the prompt"

GREETED = "conversations that the assistant begins, which the chat templates of some bases refuse"


def remarks(votes: Sequence[ImportedVote], candidates: Sequence[Candidates] = ()) -> Counter[str]:
    """The number of votes for each remark, and of answers to be rated."""
    found = Counter[str]()
    for prompt in [*(one.prompt for one in votes), *(one.prompt for one in candidates)]:
        turns = prompt if isinstance(prompt, list) else []
        begin = next((turn["role"] for turn in turns if turn["role"] != "system"), "user")
        found[GREETED] += begin == "assistant"
    found = +found
    for vote in votes:
        texts = [text for text, _ in vote.completions]
        ranked = vote.verdict.verdict == RANKED  # other verdicts may well be on equal answers
        if ranked and len(set(texts)) < len(texts):
            found[EQUAL] += 1
        elif ranked and len({_as_read(text) for text in texts}) < len(texts):
            found[TWINS] += 1
        if ranked and not all(text.strip() for text in texts):
            found[EMPTY] += 1
        prompt = as_plain(vote.prompt).strip()
        if prompt and all(text.lstrip().startswith(prompt) for text in texts):
            found[REPEATED] += 1
    return found


def _as_read(text: str) -> str:
    """The text as a reader sees it: one Unicode form, and blanks only where they separate."""
    lines = unicodedata.normalize("NFC", text).strip().splitlines()
    return "\n".join(re.sub(r"(?<=\S)\s+", " ", line).rstrip() for line in lines)
