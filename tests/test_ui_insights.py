"""The Insights page: tastes with examples, causes, raters; who sees what; own axes."""

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorarlhf.evaluation.rater_report import raters_report
from lorarlhf.preferences.accounts import OWNER, set_password
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.preferences.store import Store
from lorarlhf.rewards.learning_curve import Forecast, Point
from lorarlhf.rewards.tastes import axis_sides
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import Job
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.hidden_states import HiddenStates
from lorarlhf_ui.insights import Insights
from lorarlhf_ui.insights_html import bar
from lorarlhf_ui.insights_reward import HEIGHT, picture
from lorarlhf_ui.insights_reward import WIDTH as WIDE
from lorarlhf_ui.taste_fit import MOST_PAIRS, fit_tastes
from tests.pages import until

FIRST, SECOND = Verdict("ranked", [[0], [1]]), Verdict("ranked", [[1], [0]])
WIDTH = 40
SIDES = list(axis_sides())
HOSTILE = "<img src=x onerror=alert(1)>"
PASSWORD = "quiet harbour 7"
SECTIONS = {"tastes", "causes", "raters", "more", "reward"}


class Planted:
    """A project's store and hidden states, with a taste for the first end of one axis."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "votes.sqlite")
        self.states = HiddenStates(folder / "states.sqlite")
        self.states.use("planted")
        self.rng = np.random.default_rng(0)
        self.axes = np.linalg.qr(self.rng.normal(size=(WIDTH, len(SIDES))))[0].T
        self.states.put_axes([packed(row) for row in self.axes])
        self.count = 0

    def vote(self, count: int, rater: str = "me", axis: int = 4, known: bool = True) -> None:
        """Votes for the answer further along an axis."""
        votes = []
        for number in range(self.count, self.count + count):
            prompt = [{"role": "user", "content": f"Question {number}?"}]
            rows = self.rng.normal(size=(2, WIDTH))
            verdict = FIRST if rows[0] @ self.axes[axis] > rows[1] @ self.axes[axis] else SECOND
            texts = [f"{number} goes {row @ self.axes[axis]:+.3f} {HOSTILE}" for row in rows]
            if known:
                self.states.put(prompt, texts, [packed(row) for row in rows])
            answers = tuple((text, "base") for text in texts)
            votes.append(ImportedVote(prompt, answers, verdict, rater=rater, created_at=number))
        add_votes(self.store, votes)
        self.count += count


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def insights(planted: Planted, engine: Any = None, **more: Any) -> Insights:
    store = Store(planted.store.path)
    return Insights(store, planted.states, engine, everybody=more.pop("everybody", True), **more)


def looked(page: Insights, rater: str = "me", scope: str = "visible") -> dict[str, Any]:
    """What the page shows in the end."""
    page.look(rater, {"scope": scope})
    assert page.wait()
    return page.look(rater, {"scope": scope, "again": True})


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
    fit = fit_tastes(planted.store.votes(), planted.states)
    (_, example), *_ = fit.tastes()
    assert example is not None
    vote = next(vote for vote in planted.store.votes() if vote.prompt == example.prompt)
    best = vote.verdict.ranking[0][0]
    assert vote.completions[best] == example.chosen
    assert vote.completions[1 - best] == example.rejected


def test_only_the_newest_pairs_are_fitted(planted: Planted, monkeypatch: Any) -> None:
    monkeypatch.setattr("lorarlhf_ui.taste_fit.MOST_PAIRS", 30)
    planted.vote(50)
    fit = fit_tastes(planted.store.votes(), planted.states)
    assert len(fit.pairs) == 30 and fit.pairs[-1].prompt[0]["content"] == "Question 49?"
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
    tastes = looked(page)["sections"]["tastes"]
    assert "has yet to read the answers of 3 more" in tastes and len(wanted) == 3


def test_why_there_are_no_tastes(planted: Planted, tmp_path: Path) -> None:
    page = insights(planted)
    view = looked(page)
    assert view["sections"] == {} and "no votes yet" in view["problem"]
    planted.vote(3)
    assert "there are 3" in looked(page)["sections"]["tastes"]
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


# ---- causes and raters


def test_causes_and_raters(planted: Planted) -> None:
    answers = (("Yes, and a good deal more than that.", "base"), (f"No. {HOSTILE}", "base"))
    votes = [
        ImportedVote(f"Question {n}?", answers, FIRST if n % 8 else SECOND, rater="me", item=str(n))
        for n in range(60)
    ]
    votes += [
        ImportedVote(
            f"Question {n}?", answers, FIRST if n % 2 else SECOND, rater="ann", item=str(n)
        )
        for n in range(30)
    ]
    add_votes(planted.store, votes)
    sections = looked(insights(planted))["sections"]
    assert "<b>longer answers</b> over answers of half the length" in sections["causes"]
    assert "These stand out: longer answers" in sections["causes"]
    raters = sections["raters"]
    assert "All raters: 90 votes" in raters and "ann: 30 votes" in raters
    assert "Krippendorff" in raters and "--json has all of them" not in raters
    assert raters.count('class="disagreement"') == 10 and "more; `lorarlhf report" in raters
    assert "Preferred by ann" in raters
    for section in sections.values():
        assert "<img" not in section and "<script" not in section
    assert "&lt;img" in raters


def test_without_a_reason_nothing_stands_out(planted: Planted) -> None:
    planted.vote(12)  # answers of one length and form, whose sides are not known
    assert "No two answers differ" in looked(insights(planted))["sections"]["causes"]
    answers = (("One and some more.", "a"), ("Two.", "b"))
    coin = [
        ImportedVote(f"{n}?", answers, FIRST if n % 2 else SECOND, rater="ann") for n in range(20)
    ]
    add_votes(planted.store, coin)
    causes = looked(insights(planted), "ann", "mine")["sections"]["causes"]
    assert "Nothing stands out" in causes and "(20 pairs)" in causes and "could be luck" in causes


def test_a_bar_shows_the_interval() -> None:
    drawn = bar(0.7, 0.6, 1.2)
    assert "left:60.0%;width:40.0%" in drawn and "left:70.0%" in drawn
    assert 'aria-hidden="true"' in drawn


# ---- who sees what


def test_under_a_login_a_rater_sees_their_own_votes_only(planted: Planted) -> None:
    for name in ("ann", "bob", "olga"):
        set_password(planted.store, name, PASSWORD, OWNER if name == "olga" else None)
    planted.vote(11, rater="ann")
    planted.vote(12, rater="bob")
    planted.vote(13, rater="olga")
    planted.vote(14, rater="imported")
    page = insights(planted, everybody=False)
    for rater, count, others in (("ann", 11, "bob"), ("bob", 12, "ann"), ("olga", 27, "ann")):
        view = looked(page, rater)
        assert f"newest {count} votes" in view["sections"]["tastes"]
        text = " ".join(view["sections"].values())
        assert others not in text and not view["everybody"]
    assert "imported: 14 votes" in looked(page, "olga")["sections"]["raters"]
    with pytest.raises(UserError, match="their own votes only"):
        page.look("ann", {"scope": "all"})
    everyone = looked(insights(planted))["sections"]
    assert "newest 50 votes" in everyone["tastes"] and "bob: 12 votes" in everyone["raters"]


# ---- axes of one's own


class Reads:
    """An engine that gives this axis for every two texts."""

    def __init__(self, row: np.ndarray) -> None:
        self.row, self.asked = row, list[tuple[str, str]]()

    def direction(self, first: str, second: str) -> Job:
        self.asked.append((first, second))
        job = Job()
        job.update(value=packed(self.row), done=True)
        return job


def test_an_axis_of_one_s_own(planted: Planted) -> None:
    planted.vote(120)
    engine = Reads(-planted.axes[4])
    page = insights(planted, engine)
    assert "sure" in page.own_axis("me", {"scope": "visible", "first": "a", "second": "b"})["html"]
    engine.asked.clear()
    looked(page)
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


# ---- more votes, and how good the fit is


def test_the_forecast_and_the_report_on_the_fit(planted: Planted) -> None:
    planted.vote(120)
    sections = looked(insights(planted))["sections"]
    more = sections["more"]
    assert re.search(r"more votes are worth it|Enough votes|be told yet whether", more)
    assert more.count("<circle") == more.count("<tr><td>") == 5  # four sizes and the forecast
    assert "<td>240</td>" in more and 'role="img"' in more
    reward = sections["reward"]
    assert "for PPO" in reward and "Each of 120 votes" in reward and "How sure" in reward
    assert re.search(r"<summary>\d+% sure, and wrong: Question \d+\?</summary>", reward)
    assert "<img" not in reward and "&lt;img" in reward


def test_too_few_votes_for_a_forecast(planted: Planted) -> None:
    planted.vote(12)
    sections = looked(insights(planted))["sections"]
    assert "Too few votes" in sections["more"] and "<svg" not in sections["more"]
    planted.vote(3, rater="ann")
    few = looked(insights(planted), "ann", "mine")["sections"]
    assert few["more"] == few["reward"] == ""


def test_the_picture_stays_inside_its_frame() -> None:
    points = [Point(10, 0.2, 0.0, 1.0), Point(80, 0.9, 0.7, 1.0)]
    doubled = Point(200, 0.95, 0.8, 1.2)
    drawn = picture(Forecast(points, 100, points[1], doubled, (0.05, 0.0, 0.1), 0.9))
    for name, most in (("cx", WIDE), ("cy", HEIGHT), ("y1", HEIGHT), ("y2", HEIGHT)):
        places = [float(number) for number in re.findall(rf'{name}="([\d.-]+)"', drawn)]
        assert places and all(0 <= place <= most for place in places)
    assert drawn.count('class="later"') == 1 and drawn.count('class="now"') == 2


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
