"""How many votes each trainer uses, and what is dropped, by a store made by hand."""

from pathlib import Path

import pytest

from lorarlhf.cli.project_defaults import vote_rows
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import (
    BOTH_BAD,
    BOTH_GOOD,
    RANKED,
    SKIP,
    TIE,
    ImportedVote,
    Verdict,
    Vote,
)
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.vote_use import NOTES, STRENGTHS, VoteUse, carried_along, count_use
from lorarlhf.project.project import create
from lorarlhf.stages.table import STAGES


@pytest.fixture
def votes(tmp_path: Path) -> list[Vote]:
    verdicts = [
        Verdict(RANKED, [[0], [1]], strength="much", note="clearer"),
        Verdict(RANKED, [[1], [0]], strength="slightly"),
        Verdict(RANKED, [[0], [1]]),
        Verdict(TIE, note="the same"),
        Verdict(BOTH_GOOD),
        Verdict(BOTH_BAD, edited="A better one."),
        Verdict(SKIP),
    ]
    pair = (("First.", "base"), ("Second.", "base"))
    made = [ImportedVote(f"{n}?", pair, verdict) for n, verdict in enumerate(verdicts)]
    three = (*pair, ("Third.", "base"))
    made.append(ImportedVote("8?", three, Verdict(RANKED, [[2], [0], [1]])))
    store = Store(tmp_path / "votes.sqlite")
    add_votes(store, made)
    return store.votes(purpose="train")


def test_pairs_use_rankings_and_written_answers_but_no_ties(votes: list[Vote]) -> None:
    use = count_use("trl", votes)
    # Three pairs, two of both bad with the answer that was written, three of the ranking.
    assert (use.votes, use.used, use.rows) == (8, 5, 8)
    assert use.left_out == {
        "both good, which names no better answer": 1,
        "skipped": 1,
        "ties, which name no better answer": 1,
    }
    # The note of the tie is left out with the tie, and counted once.
    assert use.parts == {STRENGTHS: 2, NOTES: 1}
    assert use.dropped(strengths=False) == use.left_out | {STRENGTHS: 2, NOTES: 1}
    assert use.dropped(strengths=True) == use.left_out | {NOTES: 1}
    said = use.sentence("dpo", strengths=True)
    assert said.startswith("dpo learns from 5 of 8 votes (8 rows). Not used: 1 both good")
    assert said.endswith("1 notes.")
    assert VoteUse(**use.as_dict()) == use
    assert carried_along("trl", votes, strengths=True) == {NOTES: 1}
    assert carried_along("edits", votes) == {}  # the one answer that was written has neither


def test_labels_use_both_good_and_both_bad_and_the_ends_of_rankings(votes: list[Vote]) -> None:
    use = count_use("kto", votes)
    # Three pairs, both good, both bad with the answer that was written, and a ranking's ends.
    assert (use.votes, use.used, use.rows) == (8, 6, 3 * 2 + 2 + 3 + 2)
    assert use.left_out == {
        "skipped": 1,
        "ties, which call no answer good or bad": 1,
    }


def test_demonstrations_are_the_answers_that_were_written(votes: list[Vote]) -> None:
    use = count_use("demonstrations", votes)
    assert (use.used, use.rows) == (1, 1)
    assert use.left_out == {"votes without an edited answer": 7}
    assert count_use("trl", []).sentence("dpo", False) == "dpo learns from 0 of 0 votes (0 rows)."


def test_a_training_says_what_its_votes_carry_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = create(tmp_path / "mine")
    verdict = Verdict(RANKED, [[0], [1]], strength="much", note="clearer")
    pair = (("First.", "base"), ("Second.", "base"))
    add_votes(project.store(), [ImportedVote(f"{n}?", pair, verdict) for n in range(4)])
    vote_rows(project, STAGES["dpo"])
    said = capsys.readouterr().err
    assert "4 votes give 4 rows for dpo. Not used: 4 notes; 4 strengths of a preference." in said
    vote_rows(project, STAGES["reward"])  # which uses the strengths
    assert "rows for reward. Not used: 4 notes." in capsys.readouterr().err
