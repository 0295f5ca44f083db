"""The Insights page: causes, raters, more votes, how good the fit is; and who sees what."""

import re

import pytest

from lorarlhf.evaluation.agreement import Agreement
from lorarlhf.evaluation.rater_report import RaterReport, Share
from lorarlhf.evaluation.reward_report import Text, reward_report
from lorarlhf.preferences.accounts import OWNER, set_password
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote
from lorarlhf.rewards.learning_curve import Forecast, Point
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.insights_html import bar
from lorarlhf_ui.insights_raters import about, agreement
from lorarlhf_ui.insights_reward import HEIGHT, picture, reward_html
from lorarlhf_ui.insights_reward import WIDTH as WIDE
from tests.insights_steps import (
    FIRST,
    HOSTILE,
    PASSWORD,
    SECOND,
    Planted,
    fit,
    insights,
    looked,
)

pytest_plugins = ("tests.insights_steps",)


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
    assert "Preferred by ann" in raters and "Agreement on 30 pairs" in raters
    for section in sections.values():
        assert "<img" not in section and "<script" not in section
    assert "&lt;img" in raters


def test_few_overlaps_are_explained(planted: Planted) -> None:
    answers = (("Yes.", "base"), ("No.", "base"))
    both = (("me", FIRST), ("ann", SECOND))
    votes = [ImportedVote("Why?", answers, one, rater=rater, item="1") for rater, one in both]
    add_votes(planted.store, votes)
    raters = looked(insights(planted))["sections"]["raters"]
    assert "on 20 or more pairs that several raters rated; there is 1." in raters
    assert raters.index("Raters prefer different answers in 1 pair. Talk about these:") < (
        raters.index('class="disagreement"')
    )


def test_the_sentences_about_a_rater() -> None:
    votes = Share(8, 10)
    one = RaterReport(
        "ann", 10, ties=Share(1, 10), skips=Share(0, 10), left=votes, left_p=0.1, causes=[],
        same_again=Share(1, 9), circles=Share(0, 0), seconds=1.2, too_fast=Share(9, 10),
    )  # fmt: skip
    assert about(one) == [
        "10% of the votes are ties",
        "0% of the votes are skips",
        "The left answer was preferred in 8 of 10 (80%, 49% to 94%)",
        "The same verdict when asked again in 1 of 9 (11%, 2% to 43%). The rater contradicts "
        "themselves",
        "1 second a vote; 9 of 10 (90%, 60% to 98%) were faster than reading. Many votes were cast "
        "without reading",
    ]
    assert agreement(Agreement(30, 1.0)).endswith("Krippendorff's alpha has no value.")


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


def test_few_repeats_are_told_to_decide_nothing(planted: Planted) -> None:
    planted.vote(30)
    found = fit(planted)
    texts = [Text(one.asked, one.chosen, one.rejected) for one in found.pairs]
    for repeats, few in ((18, True), (20, False)):
        report = reward_report(found.votes, texts, Share(9 * repeats // 10, repeats))
        drawn = reward_html(report, found.pairs)
        again = drawn.partition("when asked again")[2].partition("</li>")[0]
        assert (f"{repeats} votes, too few to judge" in again) == few
        assert f"{repeats} votes" in again
        # (1 + sqrt(2 * 0.9 - 1)) / 2 = 0.947
        assert ("so a model can predict 95 (" in again) != few


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
