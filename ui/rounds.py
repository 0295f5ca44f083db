"""The card of a project's newest round as safe HTML, for the Train page.

Names of runs, models and judging functions are typed by people, so every text is escaped.
"""

import html
from collections.abc import Iterable

from lorarlhf.evaluation.round_card import advice, blind_votes, card_lines, card_title
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import (
    DROPPED,
    STEPS,
    UNDECIDED,
    Round,
    last_used,
    rounds,
    too_few_votes,
    votes_since,
)


def round_card_html(project: Project) -> str:
    """The newest round, or what is missing for the first one; and whether another is worth it."""
    newest = next(iter(rounds(project)), None)
    if newest is None:
        return _section("No round yet", _next_round(project))
    if not newest.finished:
        title = f"Round {newest.number}: {newest.method}"
        if newest.verdict == DROPPED:
            return _section(title, f"<p>It was dropped unfinished.</p>{_next_round(project)}")
        return _section(title, _progress(newest))
    store = project.store()
    try:
        sides = newest.steps["compare"]
        people = blind_votes(store, sides["first"], sides["second"])
    finally:
        store.close()
    about = newest.about()
    body = f'<p class="summary">{_text(advice(about["result"], people).text)}</p>'
    body += _list(card_lines(about, people))
    if newest.verdict == UNDECIDED:
        body += (
            '<p class="faint">A kept round is where the next one starts. A dropped one costs '
            "nothing: its policy is not used, and its votes count for the next round.</p>"
        )
    else:
        body += _next_round(project)
    return _section(card_title(about), body)


def _next_round(project: Project) -> str:
    """Whether there are enough votes for the next round."""
    lack = too_few_votes(project)
    if lack:
        return f'<p class="faint">{_text(lack)}</p>'
    new = votes_since(project, last_used(project)).votes
    return f'<p class="faint">{new:,} new votes: enough for the next round.</p>'


def _progress(one: Round) -> str:
    items = "".join(
        f"<li>{_text(words)}{': done' if one.is_done(name) else ''}</li>"
        for name, words in STEPS.items()
    )
    return f'<ol>{items}</ol><p class="faint">A stopped round continues where it was.</p>'


def _list(lines: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(words)}</dd>" for name, words in lines)
    return f"<dl>{rows}</dl>"


def _section(title: str, body: str) -> str:
    return f'<section class="round-card"><h3>{_text(title)}</h3>{body}</section>'


def _text(words: str) -> str:
    return html.escape(words)
