"""Rounds as data: which votes are new, what a round starts from, and what it refuses."""

from pathlib import Path
from shutil import rmtree

import numpy as np
import pytest

from lorarlhf.cli.main import main
from lorarlhf.cli.round_plan import sets_for
from lorarlhf.preferences.exports import training_rows
from lorarlhf.preferences.records import Verdict
from lorarlhf.preferences.statistics import count_pair_votes
from lorarlhf.preferences.thumbs import NamedAnswer, give_thumb
from lorarlhf.project.project import Project, create
from lorarlhf.project.rounds import (
    decide,
    least_votes,
    make_round,
    newest_kept,
    rounds,
    too_few_votes,
    unfinished,
)
from lorarlhf.project.run_labels import read_label, set_dropped
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.lock import hold
from lorarlhf.stages.table import STAGES
from lorarlhf_ui.train_rounds import check_round, round_html
from tests.project_rounds import finished_round, vote
from tests.run_folders import write_run


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return create(tmp_path / "mine")


# ---- which votes are new


def test_votes_that_name_a_better_answer_are_counted(project: Project) -> None:
    vote(project, range(3))
    vote(project, range(3), "tie")
    vote(project, range(3, 5), "skip")
    store = project.store()
    item = store.add_item("What is 0?", [("a", "base"), ("b", "base")])
    written = store.judge(store.present(item, "ann").token, Verdict("both_bad", edited="Zero."))
    for_comparison = store.add_item("Why?", [("a", "x"), ("b", "x")], purpose="compare")
    store.judge(store.present(for_comparison, "ann").token, Verdict("ranked", [[0], [1]]))
    found = count_pair_votes(store)
    assert (found.votes, found.prompts, found.newest) == (4, 3, written)
    assert count_pair_votes(store, found.newest).votes == 0
    # A correction is a new vote; an undone one is none.
    store.correct(1, Verdict("ranked", [[1], [0]]))
    store.correct(2, None)
    assert count_pair_votes(store, found.newest).votes == 1
    assert count_pair_votes(store).votes == 3


def test_a_good_and_a_bad_thumb_on_a_prompt_are_one_vote(project: Project) -> None:
    store = project.store()

    def thumb(name: str, good: bool, prompt: str = "What?", rater: str = "me") -> None:
        give_thumb(store, NamedAnswer(name, prompt, name, "base"), rater, good)

    for name, good in (("a", True), ("b", True), ("c", False)):
        thumb(name, good)
    thumb("d", False, rater="ann")
    thumb("e", False, prompt="Why?")
    found = count_pair_votes(store)
    assert (found.votes, found.prompts) == (1, 1)
    assert count_pair_votes(store, found.newest).votes == 0
    thumb("f", False)  # with the good one that had none yet
    assert count_pair_votes(store, found.newest).votes == 1
    assert count_pair_votes(store).votes == 2
    assert len(training_rows("trl", store.votes()).rows) == 2


def test_the_first_round_needs_votes_and_prompts(project: Project) -> None:
    vote(project, range(19))
    assert too_few_votes(project) == (
        "So far 19 votes name a better answer, on 19 prompts. The first round needs 20 of them on "
        "10 prompts."
    )
    vote(project, [0])
    assert too_few_votes(project) == ""


def test_another_round_needs_twenty_votes_and_a_tenth(project: Project) -> None:
    assert [least_votes(used) for used in (0, 20, 200, 201, 4000)] == [20, 20, 20, 21, 400]
    vote(project, range(20))
    one = finished_round(project, 1)
    vote(project, range(7))
    assert too_few_votes(project).startswith(
        "Round 1 learned from 20 votes, and 7 have come since then. Another round needs 20 new ones"
    )
    made = make_round(project, "ppo", {})
    assert made.votes == {"count": 27, "new": 7, "newest": 27}
    decide(project, one, "dropped")  # its votes are free again
    assert too_few_votes(project) == ""
    assert make_round(project, "ppo", {}).votes == {"count": 27, "new": 27, "newest": 27}


# ---- what a round starts from


def test_the_newest_kept_round_is_the_parent(project: Project) -> None:
    assert newest_kept(project) is None
    assert make_round(project, "ppo", {}).parents == {"round": None, "policy": None}
    first, second = finished_round(project, 1), finished_round(project, 2)
    assert make_round(project, "ppo", {}).parents["round"] is None  # nobody has kept one
    decide(project, first, "kept")
    decide(project, second, "dropped")
    made = make_round(project, "ppo", {})
    assert made.number == 3 and made.parents == {"round": 1, "policy": "runs/0002-ppo"}
    newest = project.newest_with("policy")
    assert newest is not None and newest.name == "0002-ppo"
    reward = project.newest_with("reward")
    assert reward is not None and reward.name == "0001-reward"
    decide(project, second, "kept")  # a drop is taken back
    assert make_round(project, "ppo", {}).parents == {"round": 2, "policy": "runs/0004-ppo"}
    newest = project.newest_with("policy")
    assert newest is not None and newest.name == "0004-ppo"
    assert [one.number for one in rounds(project)] == [2, 1]
    set_dropped(project.folder / "runs/0004-ppo", True)  # on the Runs page
    assert make_round(project, "ppo", {}).parents == {"round": 1, "policy": "runs/0002-ppo"}
    set_dropped(project.folder / "runs/0004-ppo", False)
    assert make_round(project, "ppo", {}).parents["round"] == 2
    rmtree(project.folder / "runs/0004-ppo")  # without the Runs page
    assert make_round(project, "ppo", {}).parents == {"round": 1, "policy": "runs/0002-ppo"}


def test_the_first_round_starts_from_the_newest_supervised_run(project: Project) -> None:
    runs = {"reward": "runs/0001-reward", "method": "runs/0002-sft"}
    one = finished_round(project, 1)
    for step, name in runs.items():
        one.steps[step]["run"] = name
    (project.folder / "runs/0002-ppo").rename(project.folder / "runs/0002-sft")
    (project.folder / "runs/0002-sft/run.json").write_text('{"stage": "sft", "status": "done"}')
    assert make_round(project, "ppo", {}).parents["policy"] == "runs/0002-sft"
    one.save()  # now it is the run of a round that nobody has kept
    assert make_round(project, "ppo", {}).parents["policy"] is None
    write_run(project, "0000-sft")  # an older one outside of rounds
    assert make_round(project, "ppo", {}).parents["policy"] == "runs/0000-sft"


def test_a_round_whose_policy_was_deleted_is_not_kept(project: Project) -> None:
    one = finished_round(project, 1)
    decide(project, one, "dropped")
    assert "Keep round 1" in round_html(project)
    rmtree(project.folder / one.steps["method"]["run"])
    with pytest.raises(UserError, match=r"its policy, runs/0002-ppo, was deleted"):
        decide(project, one, "kept")
    assert rounds(project)[0].verdict == "dropped" and "Keep round 1" not in round_html(project)


def test_an_unfinished_round_is_found_and_can_only_be_dropped(project: Project) -> None:
    one = finished_round(project, 1, result=None)
    assert unfinished(project) == one == rounds(project)[0]
    with pytest.raises(UserError, match="Round 1 is not finished"):
        decide(project, one, "kept")
    decide(project, one, "dropped")
    assert unfinished(project) is None
    (project.folder / "rounds/0002").mkdir()  # killed before its record was written
    assert make_round(project, "ppo", {}).number == 2


def test_settings_reach_their_stage() -> None:
    sets = ["updates=3", "reward.epochs=0", "ppo.kl_coef=0.2", "trl.optim=sgd"]
    assert [*sets_for(STAGES["reward"], "rloo", sets)] == ["epochs=0"]
    expected = ["algorithm=rloo", "updates=3", "kl_coef=0.2", "trl.optim=sgd"]
    assert [*sets_for(STAGES["ppo"], "rloo", sets)] == expected


# ---- the command, before anything is trained


def refused(capsys: pytest.CaptureFixture[str], project: Project, *words: str) -> str:
    status = main(["round", str(project.folder), *words])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "") and "Traceback" not in err
    return err


def test_too_few_votes_are_refused_with_numbers(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(project, range(3))
    error = refused(capsys, project)
    assert "So far 3 votes name a better answer, on 3 prompts." in error
    assert "needs 20 of them on 10 prompts" in error and "--anyway" in error
    assert not (project.folder / "rounds").exists()


def test_how_many_votes_are_worth_it_comes_from_the_learning_curve(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(project, range(20))
    one = finished_round(project, 1, verdict="kept")
    rng = np.random.default_rng(0)
    fit = VoteFit()  # a taste in one of sixteen directions, with noise: more votes help
    for number in range(60):
        pair = rng.normal(size=(2, 16)).astype(np.float32)
        order = np.argsort(-(pair[:, 0] + 0.1 * rng.normal(size=2)))
        fit.add(pair[order[0]], pair[order[1]], number)
    fit.fit()
    fit.save(project.folder / one.steps["reward"]["run"] / "votes.safetensors")
    vote(project, range(7))
    error = refused(capsys, project)
    assert "7 have come since then. Another round needs 20 new ones" in error
    assert "About 60 more votes are worth it." in error
    with pytest.raises(UserError, match=r"needs 20 new ones.*About 60 more votes are worth it\."):
        check_round(project)  # as the page says


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--keep",), "has no round yet"),
        (("--drop", "3"), "has no round 3"),
        (("--set", "kto.epochs=1"), "this round runs reward and ppo, and not kto"),
        (("--set", "update=3"), "Did you mean updates?"),
        (("--config", "none.yaml"), "none.yaml can't be read"),
        (("--judge-function", "none.py:f"), "none.py"),
        (("--judge-model", "no/such"), "no/such"),
    ],
)
def test_mistakes_are_found_before_the_night(
    project: Project, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    vote(project, range(20))
    assert said in refused(capsys, project, *words)
    assert rounds(project) == []


def test_a_method_that_does_not_exist_is_named(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(project, range(20))
    with project.settings_file.open("a") as file:
        file.write("method: reward\n")
    assert "there is no method reward. The methods are sft, ppo, dpo" in refused(capsys, project)
    file_text = project.settings_file.read_text()
    project.settings_file.write_text(file_text.replace("method: reward", "method: sft"))
    assert "nobody has written a better answer" in refused(capsys, project)


def test_a_round_waits_for_the_decision_about_the_last_one(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    vote(project, range(60))
    finished_round(project, 1)
    assert "Round 1 is finished, and nobody has said" in refused(capsys, project)
    with hold(project.folder / "rounds", "Wait."):
        assert "is in use" in refused(capsys, project, "--drop")
    assert main(["round", str(project.folder), "--drop", "--json"]) == 0
    assert rounds(project)[0].verdict == "dropped"
    assert read_label(project.folder / "runs/0002-ppo").dropped
    capsys.readouterr()
    assert main(["round", str(project.folder), "--list"]) == 0
    listed = capsys.readouterr().out
    assert "Round 1: ppo, from the base, dropped" in listed
    assert listed.splitlines()[1].split() == ["1", "ppo", "base", "20", "20", "dropped"]
