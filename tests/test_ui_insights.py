"""The Insights page: tastes with examples, what is kept, and axes of one's own."""

import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation.rater_report import raters_report
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.queue import open_answers
from lorarlhf.preferences.records import ImportedVote
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import OFF, READY, STARTING, Engine
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.taste_fit import MOST_PAIRS
from tests.insights_steps import (
    FIRST,
    HOSTILE,
    SECTIONS,
    SIDES,
    WIDTH,
    Planted,
    Reads,
    fit,
    insights,
    looked,
)
from tests.pages import FakeEngine, until

pytest_plugins = ("tests.insights_steps",)


# ---- tastes


def test_a_planted_taste_is_sure_and_has_its_example(planted: Planted) -> None:
    planted.vote(120)
    view = looked(insights(planted))
    assert not view["busy"] and view["problem"] == "" and view["everybody"]
    tastes = view["sections"]["tastes"]
    preferred, other = SIDES[4]
    first = tastes.partition('<div class="finding">')[2].partition("</div></li>")[0]
    assert f'<b><span dir="auto">{preferred}</span></b> over <span dir="auto">{other}' in first
    assert 'class="badge sure">sure' in first and "Not clear yet" in tastes
    chance, low, high = map(int, re.findall(r"<b>(\d+) of 100</b> \((\d+) to (\d+)\)", first)[0])
    assert 50 < low < chance < high <= 100
    along = [float(text) for text in re.findall(r"goes ([+-]\d\.\d+)", first)]
    assert along[0] > along[-1]  # the preferred answer comes first
    assert "From the newest 120 votes" in tastes


def test_the_example_is_a_vote_of_theirs(planted: Planted) -> None:
    planted.vote(60)
    (_, example), *_ = fit(planted).tastes()
    assert example is not None
    vote = next(vote for vote in planted.store.votes() if vote.prompt == example.prompt)
    best = vote.verdict.ranking[0][0]
    assert vote.completions[best] == example.chosen
    assert vote.completions[1 - best] == example.rejected


def test_only_the_newest_pairs_are_fitted(planted: Planted, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorarlhf_ui.taste_fit.MOST_PAIRS", 30)
    planted.vote(50)
    pairs = fit(planted).pairs
    assert len(pairs) == 30 and pairs[-1].prompt[0]["content"] == "Question 49?"
    assert MOST_PAIRS > 30


def test_many_votes_are_read_in_two_steps(planted: Planted, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorarlhf_ui.insights.NEWEST", 30)
    planted.vote(50)
    sections = looked(insights(planted))["sections"]
    assert "newest 30 votes" in sections["tastes"] and "me: 50 votes" in sections["raters"]


def test_votes_without_hidden_states_are_asked_for(planted: Planted) -> None:
    planted.vote(12)
    planted.vote(3, known=False)
    wanted: list[int] = []
    page = insights(planted, fetch=lambda vote, then: wanted.append(vote.id))
    view = looked(page)
    assert "has yet to read the answers of 3 more" in view["sections"]["tastes"]
    assert view["unread"] and len(wanted) == 3


def test_a_text_that_is_too_long_is_not_waited_for(planted: Planted) -> None:
    planted.vote(12)
    answers = (("long " * 2000, "base"), ("short", "base"))
    add_votes(planted.store, [ImportedVote("A question?", answers, FIRST, rater="me")])
    wanted: list[int] = []
    view = looked(insights(planted, fetch=lambda vote, then: wanted.append(vote.id)))
    assert "and 1 more with texts that are too long" in view["sections"]["tastes"]
    assert not view["unread"] and not wanted


def test_without_a_model_nobody_is_told_to_wait(planted: Planted) -> None:
    planted.vote(4, known=False)
    page = insights(planted, Engine(None))
    view = looked(page)
    tastes = view["sections"]["tastes"]
    assert "No model has read the answers of 4 votes" in tastes and "--no-model" in tastes
    assert "minutes" not in tastes and not view["unread"]
    planted.vote(10)
    tastes = looked(page)["sections"]["tastes"]
    assert "No model has read the answers of 4 more" in tastes and "--no-model" in tastes
    planted.states.use("another base")
    tastes = looked(page)["sections"]["tastes"]
    assert "Tastes need a model" in tastes and "--no-model" in tastes and "minute" not in tastes
    with pytest.raises(UserError, match="run without a model"):
        page.own_axis("me", {"scope": "visible", "first": "a", "second": "b"})


def test_once_the_model_is_loaded_the_page_looks_again(planted: Planted) -> None:
    planted.vote(3)
    planted.vote(10, known=False)
    engine, wanted = FakeEngine(STARTING), list[int]()
    page = insights(planted, engine, fetch=lambda vote, then: wanted.append(vote.id))
    view = looked(page)
    assert view["unread"] and "of 10 votes first" in view["sections"]["tastes"]
    with pytest.raises(UserError, match="model is loading"):
        page.own_axis("me", {"scope": "visible", "first": "a", "second": "b"})
    wanted.clear()
    looked(page)
    assert not wanted  # nothing has changed
    engine.state = READY
    assert looked(page)["unread"] and len(wanted) == 10
    engine.state, engine.message = OFF, "The model's process has ended."
    view = looked(page)
    assert not view["unread"] and "process has ended" in view["sections"]["tastes"]


def test_why_there_are_no_tastes(planted: Planted, tmp_path: Path) -> None:
    page = insights(planted)
    view = looked(page)
    assert view["sections"] == {} and "no votes yet" in view["problem"]
    planted.vote(3)
    assert (
        "at least 10 votes that prefer an answer; there are 3."
        in (looked(page)["sections"]["tastes"])
    )
    planted.vote(20, known=False)
    assert "of 20 votes first" in looked(page)["sections"]["tastes"]
    without = Planted(tmp_path / "other") if (tmp_path / "other").mkdir() is None else planted
    without.states.use("another base")
    without.vote(20)
    assert "style axes" in looked(insights(without))["sections"]["tastes"]


# ---- kept until the votes change


def test_figures_are_kept_until_the_votes_change(planted: Planted, monkeypatch: Any) -> None:
    planted.vote(20)
    page = insights(planted)
    counted: list[int] = []
    compute = page._compute

    def count(*args: Any) -> None:
        counted.append(1)
        compute(*args)

    monkeypatch.setattr(page, "_compute", count)
    first = looked(page)
    assert looked(page) == first and counted == [1]
    assert looked(page, rater="bob") == first and counted == [1]  # the same votes
    planted.vote(1)
    assert not page.look("me", {"scope": "visible", "again": True})["busy"]
    view = page.look("me", {"scope": "visible"})
    assert view["busy"] and view["sections"] == first["sections"]  # what is there meanwhile
    assert page.wait() and counted == [1, 1]
    assert "newest 21 votes" in looked(page)["sections"]["tastes"]


def test_new_states_do_not_make_the_same_votes_be_read_again(
    planted: Planted, monkeypatch: Any
) -> None:
    planted.vote(20)
    page, called = insights(planted), list[str]()
    for name in ("raters_report", "fit_tastes", "reward_report"):
        real = getattr(sys.modules[Insights.__module__], name)

        def count(*args: Any, real: Any = real, name: str = name, **more: Any) -> Any:
            called.append(name)
            return real(*args, **more)

        monkeypatch.setattr(f"lorarlhf_ui.insights.{name}", count)
    read = Store.votes
    monkeypatch.setattr(
        Store, "votes", lambda self, **only: called.append("read") or read(self, **only)
    )
    first = looked(page)
    assert called == ["read", "fit_tastes", "raters_report", "reward_report"]
    # The answers of somebody's chat, which no vote is about: this happens at every answer.
    planted.states.put("A chat?", ["Yes."], [packed(np.ones(WIDTH))])
    called.clear()
    assert page.look("me", {"scope": "visible"})["busy"]
    assert looked(page) == first and called == []
    planted.vote(5, known=False)
    looked(page)
    assert called == ["read", "raters_report", "reward_report"]  # the same pairs, more votes
    called.clear()
    vote = planted.store.votes()[-1]
    planted.states.put(vote.prompt, vote.completions, [packed(row) for row in np.eye(2, WIDTH)])
    called.clear()
    assert "newest 21 votes" in looked(page)["sections"]["tastes"]
    assert called == ["fit_tastes", "reward_report"]  # one pair more, the same votes


def test_a_failure_is_told_and_tried_again(
    planted: Planted, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    planted.vote(20)
    page = insights(planted)

    def fail(votes: Any) -> None:
        raise ZeroDivisionError("odd votes")

    with monkeypatch.context() as patched:
        patched.setattr("lorarlhf_ui.insights.raters_report", fail)
        view = looked(page)
        assert "unexpected error" in view["problem"] and view["sections"]["tastes"]
    assert "odd votes" in capsys.readouterr().err
    assert looked(page)["problem"] == ""


# ---- axes of one's own


def test_an_axis_of_one_s_own(planted: Planted) -> None:
    planted.vote(120)
    engine = Reads(-planted.axes[4])
    page = insights(planted, engine)
    with pytest.raises(UserError, match="being read; ask again"):
        page.own_axis("me", {"scope": "visible", "first": "a", "second": "b"})
    assert page.wait() and not engine.asked
    asked = {"scope": "visible", "first": " So \n long ", "second": HOSTILE}
    shown = page.own_axis("me", asked)["html"]
    assert engine.asked == [("So long", HOSTILE)]
    # The axis runs against the planted one, so the second text is preferred.
    assert shown.index("&lt;img") < shown.index("So long") and "<img" not in shown
    assert 'class="badge sure"' in shown and "show it best" in shown
    for first, second in (("", "b"), ("a", "a"), ("a" * 1001, "b")):
        with pytest.raises(UserError, match="two texts|up to 1000"):
            page.own_axis("me", {"scope": "visible", "first": first, "second": second})
    engine.row = np.ones(3)
    with pytest.raises(UserError, match="base has changed"):
        page.own_axis("me", asked)


def test_the_answers_of_an_open_pair_are_no_axis(planted: Planted) -> None:
    planted.vote(20)
    engine = Reads(planted.axes[4])
    open_of = {"ann": ["An answer\n\nof two  lines.", "x" * 2000]}
    page = insights(planted, engine, open_answers=lambda rater: open_of.get(rater, []))
    looked(page)
    for text in ("An answer of two lines.", "An answer\nof two lines. ", "x" * 1000):
        for sides in ({"first": text, "second": "b"}, {"first": "a", "second": text}):
            with pytest.raises(UserError, match="not voted on yet"):
                page.own_axis("ann", {"scope": "visible"} | sides)
            assert page.own_axis("bob", {"scope": "visible"} | sides)["html"]
    item = planted.store.add_item("Open?", [("One", "base"), ("Two", "base")])
    shown = planted.store.present(item, "ann")
    assert sorted(open_answers(planted.store, "ann")) == ["One", "Two"]
    planted.store.judge(shown.token, FIRST)
    assert open_answers(planted.store, "ann") == open_answers(planted.store, "bob") == []


def test_the_fits_of_a_few_scopes_are_kept(planted: Planted, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorarlhf_ui.insights.FITS", 2)
    for rater in ("ann", "bob", "eve"):
        planted.vote(12, rater=rater)
    page = insights(planted, Reads(planted.axes[4]))
    asked = {"scope": "mine", "first": "a", "second": "b"}
    for rater in ("ann", "bob", "eve"):
        looked(page, rater, "mine")
        assert page.own_axis(rater, asked)["html"]
    assert page.own_axis("bob", asked)["html"]
    with pytest.raises(UserError, match="being read; ask again"):
        page.own_axis("ann", asked)
    assert page.wait() and page.own_axis("ann", asked)["html"]
    assert sum(figures.fit is not None for figures in page._known.values()) == 2
    with pytest.raises(UserError, match="at least 10 votes|no votes"):
        looked(page, "new", "mine")
        page.own_axis("new", asked)


# ---- while it computes


def test_no_request_waits_for_the_figures(planted: Planted, monkeypatch: Any) -> None:
    planted.vote(20)
    page, go_on = insights(planted), threading.Event()

    def report(votes: Any) -> Any:
        assert go_on.wait(60)
        return raters_report(votes)

    monkeypatch.setattr("lorarlhf_ui.insights.raters_report", report)
    page.look("me", {"scope": "all"})
    until(lambda: page.look("me", {"scope": "all", "again": True})["sections"])
    view = page.look("me", {"scope": "all"})
    assert view["busy"] and list(view["sections"]) == ["tastes"]  # the first is there already
    go_on.set()
    assert page.wait() and set(looked(page)["sections"]) == SECTIONS
