"""`lorarlhf compare-methods`: methods on the same votes, in the same minutes, in one table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.cli import compare_methods
from lorarlhf.cli.compare_plan import BY_DEFAULT, _by_default, count_uses, find_methods
from lorarlhf.cli.compare_settings import check_settings, method_settings
from lorarlhf.cli.main import main
from lorarlhf.cli.own_process import last_line, run_command
from lorarlhf.evaluation.method_table import as_markdown, method_rows, picture
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import BOTH_GOOD, RANKED, TIE, ImportedVote, Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.lock import hold
from tests.training_steps import ctrl_c_at

SETTINGS = """
compute_dtype: float32
lora_rank: 4
reward:
  epochs: 0
dpo:
  batch_size: 4
  micro_batch_size: 4
  epochs: 3
  save_steps: 1
ppo:
  rollout_batch_size: 4
  max_new_tokens: 6
  critic_warmup: 0
  save_steps: 1
"""
MINUTES = "0.03"
Compare = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, tiny_base: Path) -> Project:
    """A project on the tiny base with nine votes, one of them a tie."""
    write_jsonl(tmp_path / "asked.jsonl", [{"prompt": f"What is {n}?"} for n in range(6)])
    made = create(tmp_path / "mine", base=str(tiny_base), bits=16, prompts=tmp_path / "asked.jsonl")
    held_out = [{"prompt": f"Why is {n}?"} for n in range(3)]
    write_jsonl(made.folder / "prompts_heldout.jsonl", held_out)
    pair = (("It is good.", "base"), ("No idea at all, sorry.", "base"))
    verdicts = [Verdict(RANKED, [[0], [1]], strength="much")] * 8 + [Verdict(TIE, note="hm")]
    votes = [ImportedVote(f"What is {n}?", pair, verdict) for n, verdict in enumerate(verdicts)]
    add_votes(made.store(), votes)
    return made


@pytest.fixture
def compare(
    project: Project,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Compare:
    """`lorarlhf compare-methods` on it; the methods train in this process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SETTINGS)

    before: list[str] = []  # what the comparison itself has said so far

    def here(words: Sequence[str], log: Path) -> int:
        before.append(capsys.readouterr().err)
        status = main(list(words))
        log.write_text(capsys.readouterr().err)
        return status

    monkeypatch.setattr(compare_methods, "run_command", here)

    def call(*words: str, minutes: str = MINUTES) -> tuple[int, str, str]:
        fixed = ["compare-methods", "mine", "--config", "tiny.yaml", "--minutes", minutes]
        fixed += ["--rater", "brief", "--max-new-tokens", "6", "--no-skills"]
        before.clear()
        status = main([*fixed, *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, "".join([*before, err])

    return call


def test_methods_in_one_table_and_done_ones_are_kept(
    compare: Compare, project: Project, tmp_path: Path
) -> None:
    words = ("--out", "results", "--methods", "dpo", "ppo", "best-of-2")
    status, out, err = compare(*words, "--json")
    assert status == 0, err
    data = json.loads(out)
    rows = {row["method"]: row for row in data["methods"]}
    assert list(rows) == ["dpo", "ppo", "best-of-2"]
    for name in ("dpo", "ppo"):
        about = read_json(tmp_path / "results" / name / "run.json")
        assert about["status"] == "done" and about["minutes"] == 0.03
        assert rows[name]["minutes"] == pytest.approx(about["trained_seconds"] / 60)
        assert rows[name]["peak_mb"] == about["peak_rss_mb"] > 0
        assert rows[name]["answers"]["kl"] is not None
    # PPO goes on until its minutes are over, and DPO is done before.
    updates = read_json(tmp_path / "results/ppo/run.json")["summary"]["updates"]
    assert updates >= 1 and rows["ppo"]["minutes"] >= 0.03
    assert rows["best-of-2"]["minutes"] == 0 and rows["best-of-2"]["answers"]["kl"] is None
    assert rows["dpo"]["votes"]["used"] == 8 and rows["dpo"]["votes"]["votes"] == 9
    judges = {judge["judge"]: judge["independent"] for judge in data["judges"]}
    assert judges == {"rater brief": True, "reward of reward": False}
    assert set(rows["ppo"]["judges"]) == set(judges)
    notes = "\n".join(data["notes"])
    assert "dpo learns from 8 of 9 votes (8 rows). Not used: 1 ties" in notes
    assert "; 8 strengths of a preference." in notes  # the tie's note is left out with it
    assert "All start from the base" in notes
    table = (tmp_path / "results/comparison.md").read_text()
    assert table.splitlines()[0].startswith("| method | win rate, rater brief | at equal length |")
    assert "| 8 of 9 |" in table and "at most 0.19" in table  # log 2 - 1/2
    svg = (tmp_path / "results/win_rate_over_kl.svg").read_text()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "best-of-2" in svg

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*.safetensors")}
    status, out, err = compare(*words)
    assert status == 0 and "dpo: trained already" in err and "are kept" in err
    assert "| ppo |" in out and "8 of 9" in out
    status, out, err = compare("--out", "results", "--methods", "dpo", "kto")  # one more
    assert status == 0 and "dpo: trained already" in err and "kto: training for up to" in err
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*.safetensors")}
    assert before.items() <= after.items() and len(after) > len(before)
    status, _, err = compare(*words, minutes="2")
    assert status == 2 and "was begun with minutes 0.03, and now it is 2" in err
    assert not (project.folder / "methods").exists()


def test_a_stopped_comparison_goes_on_in_the_project(compare: Compare, project: Project) -> None:
    words = ("--methods", "kto", "dpo")
    with ctrl_c_at(3, "dpo"):
        status, _, err = compare(*words, minutes="9")
    assert status == 130
    runs = read_json(project.folder / "methods/methods.json")["runs"]
    assert [Path(run).name for run in runs.values()] == ["0001-kto", "0002-dpo"]
    assert read_json(Path(runs["dpo"]) / "run.json")["status"] == "stopped"
    status, out, err = compare(*words, minutes="9")
    assert status == 0, err
    assert "kto: trained already" in err and "dpo: training" in err
    assert read_json(Path(runs["dpo"]) / "run.json")["status"] == "done"
    rows = [json.loads(line) for line in (Path(runs["dpo"]) / "metrics.jsonl").open()]
    steps = [row for row in rows if "loss" in row]  # the others are measurements
    assert [row["step"] for row in steps] == list(range(1, 7))  # 8 pairs, 3 epochs
    spent = [row["trained_seconds"] for row in steps]
    assert spent == sorted(spent)
    # The comparison is done, so the next one is a new one.
    assert (project.folder / "methods/comparison.json").is_file()
    status, out, err = compare("--methods", "kto", minutes="9")
    assert status == 0 and (project.folder / "methods-2/comparison.json").is_file()
    assert "0003-kto" in str(read_json(project.folder / "methods-2/methods.json")["runs"])


def test_a_comparison_goes_on_from_where_it_began(
    compare: Compare, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = Verdict(RANKED, [[0], [1]], edited="It is great.")
    pair = (("It is good.", "base"), ("No idea.", "base"))
    add_votes(project.store(), [ImportedVote("What is 9?", pair, edit)])
    train = compare_methods._train

    def interrupted(plan: Any, record: Any, method: Any) -> bool:
        if method.name == "dpo":
            raise KeyboardInterrupt
        return train(plan, record, method)

    monkeypatch.setattr(compare_methods, "_train", interrupted)
    words = ("--methods", "sft", "dpo")
    assert compare(*words)[0] == 130
    assert read_json(project.folder / "runs/0001-sft/run.json")["status"] == "done"
    monkeypatch.setattr(compare_methods, "_train", lambda *rest: False)
    status, _, err = compare(*words)  # what it has trained is not what it starts from
    assert status == 0, err
    assert read_json(project.folder / "methods/methods.json")["asked"]["init"] == ""


def test_too_few_votes_leave_nothing_behind(compare: Compare, project: Project) -> None:
    words = ("--out", "results", "--methods", "sft")
    status, _, err = compare(*words)
    assert status == 2 and "sft can use 0 of the 9 votes" in err and "Rate some answers" in err
    edit = Verdict(RANKED, [[0], [1]], edited="It is great.")
    pair = (("It is good.", "base"), ("No idea.", "base"))
    add_votes(project.store(), [ImportedVote("What is 9?", pair, edit)])
    status, out, err = compare(*words)
    assert status == 0 and "sft learns from 1 of 10 votes" in out, err


def test_by_default_all_methods_that_the_votes_suffice_for(tmp_path: Path) -> None:
    def names(project: Project, reward: str = "") -> list[str]:
        return _by_default(count_uses(project), reward)

    made = create(tmp_path / "other")
    assert names(made) == ["dpo"]  # whose error says what is missing
    rewarded = ["ppo", "rloo", "grpo", "best-of-4"]
    assert names(made, "a run") == rewarded
    pair = (("It is good.", "base"), ("No idea.", "base"))
    both = [ImportedVote(f"What is {n}?", pair, Verdict(BOTH_GOOD)) for n in range(4)]
    add_votes(made.store(), both)
    assert names(made) == ["kto"]
    ranked = [ImportedVote(f"Is it {n}?", pair, Verdict(RANKED, [[0], [1]])) for n in range(4)]
    add_votes(made.store(), ranked)
    assert names(made) == [name for name in BY_DEFAULT if name != "sft"]


def test_a_reward_role_that_is_there_needs_no_votes(
    compare: Compare, project: Project, tmp_path: Path
) -> None:
    assert compare("--out", "first", "--methods", "best-of-2")[0] == 0
    for file in project.folder.glob("preferences.sqlite*"):
        file.unlink()
    words = ("--reward", "first/reward", "--out", "second")
    status, out, err = compare(*words, "--methods", "best-of-2", "--json")
    assert status == 0, err
    data = json.loads(out)
    assert "votes" not in data["methods"][0]
    assert not any("learns from" in note for note in data["notes"])
    status, _, err = compare(*words, "--methods", "iterated-dpo")  # its first round takes votes
    assert status == 2 and "iterated-dpo can use 0 of the 0 votes" in err


def test_a_method_that_fails_stops_no_other(
    compare: Compare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = SETTINGS + "orpo:\n  max_tokens: 2\n"
    (tmp_path / "tiny.yaml").write_text(text)
    status, out, err = compare("--out", "results", "--methods", "orpo", "dpo")
    assert status == 1
    assert "orpo failed: " in err and "a prompt as long as max_tokens" in out
    assert "| dpo |" in out and "| orpo | - | - |" in out
    assert "orpo" not in read_json(tmp_path / "results/methods.json")["runs"]


def test_the_same_command_tries_again_what_has_failed(
    compare: Compare, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = compare_methods.run_command

    def fails(words: Sequence[str], log: Path) -> int:
        log.write_text("No memory.")
        return 2 if words[0] == "orpo" else run(words, log)

    with monkeypatch.context() as patch:
        patch.setattr(compare_methods, "run_command", fails)
        status, out, _ = compare("--methods", "dpo", "orpo")
    assert status == 1 and "The same command tries again what has failed" in out
    status, out, err = compare("--methods", "dpo", "orpo")
    assert status == 0 and "dpo: trained already" in err and "tries again" not in out
    assert not (project.folder / "methods-2").exists()
    # Other settings are another comparison, and so is the next one after that was finished.
    status, _, err = compare("--methods", "dpo", "--seed", "1")
    assert status == 0 and (project.folder / "methods-2/comparison.json").is_file(), err


def test_a_training_that_a_killed_comparison_has_left_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (dpo,), held = tmp_path / "dpo", find_methods(["dpo"]), hold(tmp_path / "dpo", "")
    held.__enter__()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            held.__exit__(None, None, None)

    monkeypatch.setattr(compare_methods.time, "sleep", sleep)
    compare_methods._wait_for(run, dpo)
    assert slept == [1.0] * 3 and "an earlier process still trains it" in capsys.readouterr().err
    compare_methods._wait_for(run, dpo)
    assert len(slept) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--methods", "ppp"), "There is no method ppp"),
        (("--methods", "best-of-1"), "There is no method best-of-1"),
        (("--methods", "best-of-2", "best-of-4"), "Only one best-of-N"),
        (("--methods", "sft"), "sft can use 0 of the 9 votes"),
        (("--methods", "dpo", "--rater", "cheery"), "no rater named 'cheery'"),
        (("--methods", "dpo", "--samples", "0"), "--samples is 1 or more"),
        (("--methods", "dpo", "--prompts", "no.jsonl"), "no.jsonl"),
        (("--methods", "dpo", "--init", "nowhere"), "there is no such folder"),
        (("--methods", "ppo", "--reward", "nowhere"), "there is no such folder"),
        (("--methods", "dpo", "--judge-function", "no.py:f"), "no.py, which does not exist"),
    ],
)
def test_what_is_refused_before_anything_is_trained(
    compare: Compare, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    status, _, err = compare("--out", "results", *words)
    assert status == 2 and said in err
    assert not list((tmp_path / "mine/runs").iterdir())


def test_minutes_and_folders_are_checked(compare: Compare, tmp_path: Path) -> None:
    status, _, err = compare("--methods", "dpo", minutes="0")
    assert status == 2 and "--minutes is above 0" in err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    status, _, err = compare("--methods", "dpo", "--out", "taken")
    assert status == 2 and "holds something else already" in err


def test_the_methods_are_stages_with_their_settings() -> None:
    found = find_methods(["grpo", "best-of-8", "grpo", "iterated-dpo"])
    assert [(m.name, m.stage, m.sets, m.best_of) for m in found] == [
        ("grpo", "ppo", ("algorithm=grpo",), 0),
        ("best-of-8", "", (), 8),
        ("iterated-dpo", "dpo", (), 0),
    ]
    with pytest.raises(UserError, match="The methods are sft, dpo, orpo, kto, ppo, rloo, grpo"):
        find_methods(["PPO"])


def test_each_method_has_its_part_of_the_settings() -> None:
    blocks = {"ppo", "dpo", "grpo", "iterated-dpo"}
    config = {"lora_rank": 4, "ppo": {"critic_warmup": 0, "updates": 7}, "grpo": {"updates": 8}}
    config |= {"dpo": {"epochs": 2}, "iterated-dpo": {"rounds": 3}}
    found = {
        name: method_settings(config, name, stage, blocks)
        for name, stage in [
            *(("ppo", "ppo"), ("rloo", "ppo"), ("grpo", "ppo")),
            *(("dpo", "dpo"), ("iterated-dpo", "dpo"), ("kto", "kto")),
        ]
    }
    assert found == {
        "ppo": {"lora_rank": 4, "ppo": {"critic_warmup": 0, "updates": 7}},
        "rloo": {"lora_rank": 4, "ppo": {"updates": 7}},  # it has no critic
        "grpo": {"lora_rank": 4, "ppo": {"updates": 8}},
        "dpo": {"lora_rank": 4, "dpo": {"epochs": 2}},
        "iterated-dpo": {"lora_rank": 4, "dpo": {"epochs": 2, "rounds": 3}},
        "kto": {"lora_rank": 4},
    }
    assert "updates" in check_settings(found["rloo"], "rloo", "ppo", "mine.yaml")
    with pytest.raises(UserError, match="mine.yaml, for kto: there is no setting lora_rang"):
        check_settings({"lora_rang": 4}, "kto", "kto", "mine.yaml")


def test_the_table_by_hand() -> None:
    answers = {"name": "0002-dpo", "kl": 1.5, "kl_bound": None, "length": 20.25}
    best = {"name": "best of 4", "kl": None, "kl_bound": 0.636, "length": 21.0}
    win = {"candidate": "0002-dpo", "rate": 0.62, "ci95": [0.5, 0.74]}
    win |= {"length_controlled": {"rate": 0.6, "ci95": [0.4, 0.8]}}
    other = {"candidate": "best of 4", "rate": 0.7, "ci95": [0.6, 0.8], "length_controlled": None}
    judge = {"judge": "rater brief", "independent": True, "results": [win, other]}
    skill = {"candidate": "0002-dpo", "kind": "all", "change": -0.03, "low": -0.07, "high": 0.01}
    found = {"candidates": [answers, best], "judges": [judge], "skills": [skill]}
    votes = {"votes": 10, "used": 8}
    methods = {
        "dpo": {"candidate": "0002-dpo", "minutes": 4.96, "peak_mb": 1234.0, "votes": votes},
        "best-of-4": {"candidate": "best of 4", "minutes": 0.0, "votes": votes},
        "kto": {"candidate": None, "votes": {"votes": 10, "used": 7}, "failed": "It has no x."},
    }
    rows = method_rows(methods, found)
    lines = as_markdown(rows, [judge]).splitlines()
    assert lines[2:] == [
        "| dpo | 62% (50 to 74%) | 60% (40 to 80%) | 1.50 | 20.2 | -3 (-7 to +1) | 5.0 | 1.2 | "
        "8 of 10 |",
        "| best-of-4 | 70% (60 to 80%) | - | at most 0.64 | 21.0 | - | 0.0 | - | 8 of 10 |",
        "| kto | - | - | - | - | - | - | - | 7 of 10 |",
    ]
    assert "(not independent)" in as_markdown(rows, [judge | {"independent": False}])
    drawn = picture(0, judge, rows)
    assert "dpo 62% (50% to 74%), 1.5 nats" in drawn and "best-of-4" in drawn
    assert picture(0, judge | {"results": []}, rows) == ""


def test_a_command_runs_in_a_process_of_its_own(project: Project, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert run_command(["votes", str(project.folder)], log) == 0
    assert run_command(["votes", "nowhere"], log) == 2
    assert "nowhere is not a project" in last_line(log)
    assert last_line(tmp_path / "none.txt") == "it gave no reason."
