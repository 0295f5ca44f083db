"""Finding votes, and verdicts and rankings as text."""

import os
import time
from pathlib import Path

import pytest

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


from lorarlhf.preferences.history import (
    PAGE,
    VoteFilter,
    describe,
    find,
    ranking_text,
    read_ranking,
)
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import undo
from lorarlhf.runtime.errors import UserError
from tests.history_votes import FIRST, filled_store, given


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled_store(tmp_path)


# ---- finding


@pytest.mark.parametrize(
    "wanted, prompts",
    [
        (VoteFilter(), [5, 4, 3, 2, 1]),
        (VoteFilter(rater="me"), [3, 2, 1]),
        (VoteFilter(purpose="compare"), [3]),
        (VoteFilter(verdict="ranked", rater="me"), [2, 1]),
        (VoteFilter(words="question 2"), [2]),
        (VoteFilter(words="GREEN."), [2]),  # an answer
        (VoteFilter(words="über"), [2]),  # a note, in other capitals
        (VoteFilter(words="STRASSE"), []),
        (VoteFilter(words="straße"), [4]),  # an edited answer
        (VoteFilter(words='"quiet"'), [3]),  # JSON would have it with backslashes
        (VoteFilter(words="100%"), [3]),
        (VoteFilter(words="1%0"), []),
        (VoteFilter(words="q_iet"), []),
        (VoteFilter(words="content"), []),  # words of the file's form are nobody's
        (VoteFilter(words="user"), []),
        (VoteFilter(words="Two. question"), [5, 4, 1]),  # every word, wherever it stands
    ],
)
def test_votes_are_found(store: Store, wanted: VoteFilter, prompts: list[int]) -> None:
    found = find(store, wanted)
    assert [vote.created_at // 1000 for vote in found.votes] == prompts
    assert found.total == len(prompts)


def test_pages_end_and_a_page_behind_the_last_is_the_last(store: Store) -> None:
    assert [v.created_at for v in find(store, VoteFilter(), 2, 2).votes] == [3000, 2000]
    behind = find(store, VoteFilter(), 6, 2)
    assert (behind.start, behind.total, len(behind.votes)) == (4, 5, 1)
    assert find(store, VoteFilter(), -3, 2).start == 0
    nothing = find(store, VoteFilter(rater="eve"), 50)
    assert (nothing.start, nothing.total, nothing.votes) == (0, 0, [])
    undo(store, "me", expected=find(store, VoteFilter(rater="me", purpose="train")).votes[0].id)
    assert find(store, VoteFilter(rater="me")).total == 2


def test_fifty_thousand_votes_stay_quick(tmp_path: Path) -> None:
    store = Store(tmp_path / "many.sqlite")
    add_votes(store, (given(n, prompt=f"Question {n % 500}?") for n in range(50_000)))
    started = time.monotonic()
    assert find(store, VoteFilter(), 49_950).total == 50_000
    assert find(store, VoteFilter(words="nowhere")).total == 0
    assert len(find(store, VoteFilter(rater="me", words="question 77?")).votes) == PAGE
    assert time.monotonic() - started < 6  # a second on an idle core


# ---- words


@pytest.mark.parametrize(
    "verdict, count, text",
    [
        (FIRST, 2, "A is better"),
        (Verdict("ranked", [[1]], "much"), 2, "B is better, much"),
        (Verdict("ranked", [[1], [0, 2]]), 3, "B > A = C"),
        (Verdict("ranked", [[3]], "clearly"), 4, "D (A, B, C not ranked), clearly"),
        (Verdict("both_good"), 2, "both good"),
        (Verdict("both_bad"), 3, "all bad"),
        (Verdict("skip"), 2, "skipped"),
    ],
)
def test_verdicts_as_text(verdict: Verdict, count: int, text: str) -> None:
    assert describe(verdict, count) == text


@pytest.mark.parametrize("text, ranking", [("b>a=C", [[1], [0, 2]]), (" C ", [[2]])])
def test_rankings_are_read(text: str, ranking: list[list[int]]) -> None:
    assert read_ranking(text, 3) == ranking
    assert read_ranking(ranking_text(ranking), 3) == ranking


@pytest.mark.parametrize(
    "text, why",
    [
        ("B > D", "D is none of A, B, C"),
        ("AB > C", "AB is none of"),
        ("B > A > B", "B occurs twice"),
        ("B > > A", "a letter is missing"),
        ("A B > C", "a letter is missing"),
        ("", "a letter is missing"),
        ("=", "a letter is missing"),
        ("A=B=C", "choose the tie"),
    ],
)
def test_bad_rankings_are_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        read_ranking(text, 3)
