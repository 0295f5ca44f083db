"""What the card of a round says, as text and on the pages."""

from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli.main import main
from lorarlhf.evaluation.round_card import (
    advice,
    blind_votes,
    card_lines,
    card_page,
    card_text,
    measured,
)
from lorarlhf.evaluation.skills import SkillChange
from lorarlhf.preferences.blind_comparisons import add_comparison
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.project.rounds import decide
from lorarlhf.runtime.files import read_json
from lorarlhf_ui.rounds import round_card_html
from tests.project_rounds import finished_round, judge, result, vote


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create(tmp_path / "mine")


def about(**changes: Any) -> dict[str, Any]:
    return {
        "number": 2,
        "method": "ppo",
        "votes": {"count": 312, "new": 82, "newest": 400},
        "parents": {"round": 1, "policy": "runs/0002-ppo"},
        "verdict": "undecided",
        "result": result(),
    } | changes


def test_the_card_says_what_changed_in_numbers() -> None:
    assert card_lines(about()) == [
        ("Votes", "312, of which 82 are new"),
        (
            "Reward role",
            "predicts 71% (66 to 76%) of 312 votes, each by a fit to votes on other prompts. About "
            "310 more votes are worth it.",
        ),
        (
            "By reward of 0003-reward",
            "wins 64% (52 to 75%) against the base, +11 points (+2 to +20) compared with round 1; "
            "not independent",
        ),
        ("By people", "no votes yet; 30 pairs are ready on the Compare page"),
        ("KL from the base", "4.20 nats an answer; round 1: 2.10"),
        ("Length", "83 tokens; round 1: 61"),
        (
            "Short tasks",
            "62 of 100 done, -2 points (-9 to +5) compared with round 1: no change larger than "
            "chance",
        ),
        (
            "Short tasks",
            "62 of 100 done, -8 points (-9 to +5) compared with the base: no change larger than "
            "chance",
        ),
        ("Time", "43 min 12 s"),
    ]
    text = card_text(about(verdict="kept"))
    assert text.startswith("Round 2: ppo, from round 1, kept\n  Votes ")
    assert text.endswith("vote on the Compare page before you decide.")


def test_the_card_of_a_first_round_compares_with_the_base_once() -> None:
    one = result(judges=[judge("function f", (0.02, 0.25))], alarms=["kl-high"])
    lines = card_lines(about(parents={"round": None, "policy": None}, result=one))
    names = [name for name, _ in lines]
    assert names.count("Short tasks") == 1 and "Alarms" in names
    assert dict(lines)["By function f"] == "wins 64% (52 to 75%) against the base"
    assert dict(lines)["KL from the base"] == "4.20 nats an answer"
    votes = {"rate": 0.6, "ci95": [0.42, 0.76], "n": 30}
    people = dict(card_lines(about(), votes))["By people"]
    assert people == "wins 60% (42 to 76%) of 30 blind votes against round 1"


SURE, NOT, WORSE = (0.02, 0.2), (-0.1, 0.1), (-0.2, -0.02)
FORGOT = {"kind": "all", "tasks": 100, "before": 64, "after": 44}
FORGOT |= {"low": -0.3, "high": -0.1, "p": 0.001, "change": -0.2}


@pytest.mark.parametrize(
    ("independent", "reward", "people", "forgot", "action", "sure"),
    [
        (None, SURE, None, False, "look", False),  # its own reward role alone decides nothing
        (None, SURE, [0.55, 0.9], False, "keep", True),
        (None, SURE, [0.3, 0.7], False, "look", False),
        (None, SURE, [0.1, 0.4], False, "drop", True),
        (None, NOT, None, False, "drop", False),
        (None, SURE, None, True, "drop", False),
        (SURE, NOT, None, False, "keep", True),
        (SURE, NOT, None, True, "look", False),
        (SURE, SURE, [0.1, 0.4], False, "look", False),
        (WORSE, SURE, None, False, "drop", True),
        (NOT, WORSE, None, False, "drop", False),
    ],
)
def test_the_advice_follows_independent_judges(
    independent: tuple[float, float] | None,
    reward: tuple[float, float],
    people: list[float] | None,
    forgot: bool,
    action: str,
    sure: bool,
) -> None:
    judges = [judge("reward", reward, independent=False)]
    judges += [judge("function f", independent)] if independent else []
    one = result(judges=judges, **({"tasks": {"previous": FORGOT}} if forgot else {}))
    votes = {"rate": 0.5, "ci95": people, "n": 30} if people else None
    said = advice(one, votes)
    assert (said.action, said.sure) == (action, sure), said.text
    assert said.text.endswith(".")


def test_a_judge_that_has_not_seen_the_round_before_decides_nothing() -> None:
    """People may have compared the new policy with the base alone."""
    better = judge("people", (0, 0)) | {"previous": None}
    assert advice(result(judges=[better])).action == "drop"


def test_what_eval_found_is_turned_to_the_new_policy() -> None:
    """`eval` names the two policies in either order; the difference is that of the new one."""
    figures = {"kl": 1.0, "kl_se": 0.1, "kl_bound": None, "length": 9.0, "ended": 1.0, "run": "x"}
    rate = {"rate": 0.6, "ci95": [0.4, 0.7], "n": 9, "wins": 5}
    gap = {"candidate": "old", "other": "new", "difference": -0.1, "ci95": [-0.3, 0.05]}
    found = {
        "candidates": [figures | {"name": name} for name in ("base", "new", "old")],
        "judges": [
            {
                "judge": "f",
                "independent": True,
                "note": "",
                "results": [rate | {"candidate": name} for name in ("new", "old")],
                "between": [gap],
            },
            {"judge": "people", "independent": True, "note": "", "results": [], "between": []},
        ],
    }
    changes = [SkillChange("all", 10, 5, 4, -0.3, 0.1, 1.0)]
    one = measured(found, "new", "old", {"previous": changes})
    assert [judge["judge"] for judge in one["judges"]] == ["f"]
    assert one["judges"][0]["previous"] == {"difference": 0.1, "ci95": [-0.05, 0.3]}
    assert one["judges"][0]["base"] == {"rate": 0.6, "ci95": [0.4, 0.7], "n": 9}
    assert one["tasks"]["previous"]["change"] == pytest.approx(-0.1)
    first = measured(found, "new", "base", {"previous": changes})["judges"][0]["previous"]
    assert first["difference"] == pytest.approx(0.1)
    assert first["ci95"] == pytest.approx([-0.1, 0.2])
    assert "run" not in one["policy"]


def test_blind_votes_are_of_the_two_policies_and_of_finished_comparisons(project: Project) -> None:
    store = project.store()
    pair = ("runs/0002-ppo", "runs/0004-ppo")

    def cast(first: str, second: str, best: list[int], wanted: int) -> None:
        made = add_comparison(store, first, second, wanted)
        for n, place in enumerate(best):
            item = store.add_item(
                f"{n}?", [("a", first), ("b", second)], purpose="compare", comparison=made.id
            )
            verdict = Verdict("ranked", [[place], [1 - place]])
            store.judge(store.present(item, "ann").token, verdict)

    assert blind_votes(store, *pair) is None
    cast(*pair, [1, 1, 1, 0], wanted=4)
    cast("base", pair[1], [0, 0], wanted=2)
    cast(*pair[::-1], [1, 1], wanted=9)  # not finished: it stays hidden who is ahead
    found = blind_votes(store, *pair)
    assert found is not None and (found["n"], found["wins"], found["rate"]) == (4, 3, 0.75)


# ---- the card as pages


def test_the_cards_pages_show_names_as_text(project: Project) -> None:
    evil = "function <img src=x onerror=alert(1)>"
    record = about(result=result(judges=[judge(evil, SURE)]))
    page = card_page(record)
    assert "<img" not in page and "&lt;img" in page
    finished_round(project, 1, result=record["result"])
    shown = round_card_html(project)
    assert "<img" not in shown and "&lt;img" in shown
    assert "Keep it. It is better, beyond chance" in shown


def test_the_page_shows_what_is_missing_and_how_far_a_round_is(project: Project) -> None:
    assert "No round yet" in round_card_html(project)
    assert "So far 0 votes name a better answer, on 0 prompts." in round_card_html(project)
    vote(project, range(20))
    assert "20 new votes: enough for the next round." in round_card_html(project)
    one = finished_round(project, 1, result=None)
    del one.steps["card"], one.steps["eval"]
    one.save()
    shown = round_card_html(project)
    assert shown.count(": done</li>") == 3 and "<li>the card</li>" in shown
    decide(project, one, "dropped")
    assert "It was dropped unfinished." in round_card_html(project)
    finished_round(project, 2, verdict="kept")
    shown = round_card_html(project)
    assert "Round 2: ppo, from the base, kept" in shown and "0 have come since then" in shown


def test_a_decided_card_is_written_again(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    one = finished_round(project, 1)
    assert main(["round", str(project.folder), "--keep", "1"]) == 0
    out = capsys.readouterr().out
    assert "Round 1: ppo, from the base, kept" in out and "Decide with" not in out
    assert "Round 1: ppo, from the base, kept" in (one.folder / "card.html").read_text()
    assert read_json(one.folder / "round.json")["verdict"] == "kept"
