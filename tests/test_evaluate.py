"""The command `eval` on a tiny base: candidates, judges, KL, and what it refuses."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import generate
from lorarlhf.cli import evaluate
from lorarlhf.cli.eval_answers import Answering
from lorarlhf.cli.eval_history import learned_note, learned_prompts, made_with
from lorarlhf.cli.eval_plan import check_options, read_plan
from lorarlhf.cli.main import main
from lorarlhf.cli.parser import build_parser
from lorarlhf.evaluation.candidates import BASE
from lorarlhf.preferences.records import RANKED, Verdict
from lorarlhf.project.lineage import read_source_run
from lorarlhf.project.project import Project, create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.run import Run

QUESTIONS = [f"What is {number}?" for number in range(5)]
SMALL = ("--max-new-tokens", "6")
JUDGE = """
def more_words(prompts, completions, kind, **columns):
    assert kind == ["q"] * len(prompts) and prompts[0][0]["role"] == "user"
    return [float(len(c[0]["content"].split())) for c in completions]
"""
Eval = Callable[..., tuple[int, str, str]]


def saved(tiny: Backbone, folder: Path, stage: str, role: str = "policy", **config: Any) -> str:
    run = Run(folder, stage, {"seed": 0, "compute_dtype": "float32", **config})
    run.base(tiny)
    tiny.save(role, folder / "adapters" / role)
    run.finish("done")
    return str(folder)


@pytest.fixture
def runs(tiny: Backbone, tmp_path: Path, randomise: Callable[..., None]) -> dict[str, str]:
    """Runs of sft and ppo with different policies, and one with a reward role."""
    found = {}
    tiny.add_role("reward")
    randomise(tiny, "reward", seed=5)
    found["reward"] = saved(tiny, tmp_path / "reward", "reward", role="reward")
    for seed, name in enumerate(("sft", "ppo")):
        randomise(tiny, "policy", seed=seed, std=0.2)
        more = {"reward": found["reward"], "init": found["sft"]} if name == "ppo" else {}
        found[name] = saved(tiny, tmp_path / name, name, **more)
    return found


@pytest.fixture
def run_eval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Eval:
    """Run `eval` in a folder with held-out prompts, tasks and a judging function."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "held.jsonl", [{"prompt": q, "kind": "q"} for q in QUESTIONS])
    row = {"kind": "form", "check": {"regex": "."}}
    write_jsonl(tmp_path / "tasks.jsonl", [row | {"prompt": f"Say {n}."} for n in range(3)])
    (tmp_path / "judge.py").write_text(JUDGE)

    def call(*words: str) -> tuple[int, str, str]:
        status = main(["eval", *words, *SMALL])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return status, out, err

    return call


def plan_of(*words: str) -> Any:
    args = build_parser().parse_args(["eval", *words, *SMALL])
    check_options(args)
    return args, read_plan(args)


def test_everything_at_once(runs: dict[str, str], run_eval: Eval, tmp_path: Path) -> None:
    words = (runs["sft"], runs["ppo"], "--best-of", "3", "--reward", runs["reward"])
    words += ("--prompts", "held.jsonl", "--tasks", "tasks.jsonl", "--rater", "brief")
    words += ("--judge-function", "judge.py:more_words", "--samples", "2")
    status, out, err = run_eval(*words, "--json", "--out", "results")
    assert status == 0, err
    told = json.loads(out)
    names = ["base", "best of 3", "sft", "ppo"]
    assert [one["name"] for one in told["candidates"]] == names
    base, best, sft, ppo = told["candidates"]
    assert base["kl"] == 0 and best["kl"] is None
    assert best["kl_bound"] == pytest.approx(math.log(3) - 2 / 3)
    assert sft["kl"] != 0 and ppo["kl"] != sft["kl"] and sft["kl_se"] > 0
    judges = {one["judge"]: one for one in told["judges"]}
    assert list(judges) == ["rater brief", "function more_words", "reward of reward"]
    for judge in judges.values():
        assert [one["candidate"] for one in judge["results"]] == names[1:]
        for one in judge["results"]:
            assert one["n"] == 10 == one["wins"] + one["ties"] + one["losses"]
            assert 0 <= one["ci95"][0] <= one["rate"] <= one["ci95"][1] <= 1
    reward = judges["reward of reward"]
    assert not reward["independent"] and reward["note"] == "best of 3, ppo were made with it"
    assert reward["scores"]["best of 3"] > reward["scores"]["base"]
    assert len(told["answers"]) == 10 and set(told["answers"][0]["answers"]) == set(names)
    assert {one["candidate"] for one in told["skills"]} == {"sft", "ppo"}
    assert set(told["tasks"][0]["answers"]) == {"base", "sft", "ppo"}
    page = (tmp_path / "results/report.html").read_text()
    assert told["page"] == "results/report.html" and "What is 3?" in page
    kept = read_json(tmp_path / "results/eval.json")
    assert kept["candidates"] == told["candidates"] and kept["judges"] == told["judges"]
    status, out, err = run_eval(*words, "--out", "results")
    assert status == 0 and "at most 0.43" in out and "rater brief" in out
    status, _, err = run_eval(runs["sft"], "--out", "sft", "--no-skills")
    assert status == 2 and "holds something else" in err


def test_answers_are_those_of_the_policy_with_the_same_seeds(
    runs: dict[str, str], run_eval: Eval, tiny: Backbone
) -> None:
    args, plan = plan_of(runs["sft"], "--prompts", "held.jsonl", "--seed", "3")
    answering = Answering(tiny, plan, args, [])
    base, sft = answering.base(), answering.policy("sft")
    prompts = [row["prompt"] for row in answering.rows]
    for role, found in ((BASE, base), ("policy", sft)):
        made = generate(tiny, prompts, role=role, max_new_tokens=6, temperature=0.7, seed=3)
        assert [one.text for one in made] == [answer.text for answer in found.answers]
        assert [len(one.ids) for one in made] == [answer.tokens for answer in found.answers]
    for weight in tiny.parameters_of("policy"):
        weight.data.zero_()  # a policy that is the base
    twin = answering._answers("policy", "twin")
    assert [one.text for one in twin] == [answer.text for answer in base.answers]
    assert answering._kl(twin, "twin") == pytest.approx([0.0] * 5, abs=1e-5)


def test_the_kl_is_the_difference_of_log_probabilities(
    runs: dict[str, str], run_eval: Eval, tiny: Backbone
) -> None:
    args, plan = plan_of(runs["ppo"], "--prompts", "held.jsonl", "--temperature", "0.9")
    answering = Answering(tiny, plan, args, [])
    tiny.load_role("policy", plan.policies["ppo"].adapter)
    completions = answering._answers("policy", "ppo")
    found = answering._kl(completions, "ppo")
    for encoded, one, kl in zip(answering.encoded, completions, found, strict=True):
        totals = []
        for role in ("policy", "base"):
            with torch.no_grad(), tiny.role(role):
                logits = tiny.causal(torch.tensor([encoded + one.ids])).logits[0].float()
            own = (logits[len(encoded) - 1 : -1] / 0.9).log_softmax(-1)
            totals.append(float(own.gather(1, torch.tensor(one.ids)[:, None]).sum()))
        assert kl == pytest.approx(totals[0] - totals[1], abs=1e-3)


def test_what_a_run_was_made_with(runs: dict[str, str], run_eval: Eval, tmp_path: Path) -> None:
    assert made_with(read_source_run(runs["sft"], "policy", "RUN")) == ()
    ppo = read_source_run(runs["ppo"], "policy", "RUN")
    assert made_with(ppo) == (str((tmp_path / "reward").resolve()),)
    about = read_json(tmp_path / "sft/run.json")
    about["config"]["reward_function"] = ["judge.py:more_words"]
    (tmp_path / "sft/run.json").write_text(json.dumps(about))
    # The run of ppo started from it.
    assert f"{(tmp_path / 'judge.py').resolve()}:more_words" in made_with(ppo)
    words = (runs["ppo"], "--prompts", "held.jsonl", "--no-skills", "--json")
    status, out, err = run_eval(*words, "--judge-function", "judge.py:more_words")
    assert status == 0, err
    (judge,) = json.loads(out)["judges"]
    assert not judge["independent"] and judge["note"] == "ppo was made with it"


def test_what_old_runs_recorded_is_found_from_elsewhere(
    runs: dict[str, str], run_eval: Eval, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = create(tmp_path / "mine")
    for name in ("sft", "ppo", "reward"):
        shutil.move(runs[name], project.folder / "runs" / name)
    judge = shutil.move(tmp_path / "judge.py", project.folder / "judge.py")
    rows = [{"prompt": f"{n}?", "chosen": "a", "rejected": "b"} for n in range(3)]
    write_jsonl(project.folder / "runs/reward.votes.jsonl", rows)

    def record(name: str, **config: Any) -> None:
        file = project.folder / "runs" / name / "run.json"
        about = read_json(file)
        file.write_text(json.dumps(about | {"config": about["config"] | config}))

    # As typed in the project's folder, in the one around it, and beside the run.
    record("ppo", reward="runs/reward", init="mine/runs/sft", reward_function=["judge.py:f"])
    record("reward", data="reward.votes.jsonl")
    ppo = read_source_run(project.folder / "runs/ppo", "policy", "RUN")
    monkeypatch.chdir(tmp_path.parent)
    assert set(made_with(ppo)) == {str(project.folder / "runs/reward"), f"{judge}:f"}
    assert learned_prompts(ppo, ["1?", "2?", "3?"]) == 2  # of the rows of its reward role
    record("sft", reward_function=["judge.py:g"])
    assert f"{judge}:g" in made_with(ppo)


def test_a_system_message_belongs_to_the_prompt(
    runs: dict[str, str], run_eval: Eval, tmp_path: Path
) -> None:
    system = {"role": "system", "content": "Be brief."}
    asked = [system, {"role": "user", "content": "Why?"}]
    row = {"messages": [*asked, {"role": "assistant", "content": "So."}]}
    write_jsonl(tmp_path / "demos.jsonl", [row])
    about = read_json(tmp_path / "sft/run.json")
    about["config"]["data"] = str(tmp_path / "demos.jsonl")
    (tmp_path / "sft/run.json").write_text(json.dumps(about))
    sft = read_source_run(runs["sft"], "policy", "RUN")
    other = [system, {"role": "user", "content": "How?"}]
    assert learned_prompts(sft, [asked, other]) == 1


def test_prompts_that_were_learned_from_are_told(
    runs: dict[str, str], run_eval: Eval, tmp_path: Path
) -> None:
    rows = [{"messages": [{"role": "user", "content": QUESTIONS[1]}]}, {"prompt": "Other?"}]
    write_jsonl(tmp_path / "demos.jsonl", [*rows, {"prompt": f" {QUESTIONS[2]}"}])
    about = read_json(tmp_path / "sft/run.json")
    about["config"]["data"] = "demos.jsonl"
    (tmp_path / "sft/run.json").write_text(json.dumps(about))
    sources = {name: read_source_run(runs[name], "policy", "RUN") for name in ("sft", "ppo")}
    note = learned_note(sources, QUESTIONS)
    assert note.startswith("Some of the 5 prompts were also learned from: 2 by sft, 2 by ppo.")
    assert learned_note(sources, ["New?"]) == ""
    (tmp_path / "demos.jsonl").unlink()
    assert learned_note(sources, QUESTIONS) == ""


def test_adapters_of_other_shapes_share_the_largest(
    runs: dict[str, str], run_eval: Eval, tiny_base: Path, tmp_path: Path
) -> None:
    wide = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=3, lora_rank=8
    )
    saved(wide, tmp_path / "wide", "dpo")
    _, plan = plan_of(runs["sft"], "wide", "--prompts", "held.jsonl")
    assert plan.settings.backbone["lora_rank"] == 8
    assert plan.settings.backbone["adapter_layers"] == 3
    words = (runs["sft"], "wide", "--prompts", "held.jsonl", "--no-skills", "--json")
    status, out, err = run_eval(*words)
    assert status == 0, err
    _, sft, other = json.loads(out)["candidates"]
    assert other["kl"] == pytest.approx(0, abs=1e-5)  # a fresh adapter changes nothing
    status, out, _ = run_eval(runs["sft"], "--prompts", "held.jsonl", "--no-skills", "--json")
    assert json.loads(out)["candidates"][1]["kl"] == pytest.approx(sft["kl"], rel=1e-3)


def test_a_project_and_the_votes_of_people(
    runs: dict[str, str],
    run_eval: Eval,
    tiny: Backbone,
    tiny_base: Path,
    tmp_path: Path,
    randomise: Callable[..., None],
) -> None:
    project = create(tmp_path / "mine", base=str(tiny_base), bits=16)
    write_jsonl(project.folder / "prompts_heldout.jsonl", [{"prompt": q} for q in QUESTIONS])
    randomise(tiny, "policy", seed=1)
    for number, stage in ((1, "sft"), (2, "sft"), (3, "dpo")):
        saved(tiny, project.folder / "runs" / f"000{number}-{stage}", stage)
    saved(tiny, project.folder / "runs" / "0004-reward", "reward", role="reward")
    store = project.store()
    comparison = _comparison(project, "base", "runs/0003-dpo")
    for number in range(3):
        answers = [("Yes.", "base"), ("Yes, of course.", "runs/0003-dpo")]
        item = store.add_item(f"{number}?", answers, purpose="compare", comparison=comparison)
        store.judge(store.present(item, "ann").token, Verdict(RANKED, [[1], [0]]))
    picked = "base, best of 4 by 0004-reward"
    for wanted, count in ((2, 2), (30, 1)):  # the second one still runs
        comparison = _comparison(project, "base", picked, wanted)
        for number in range(count):
            answers = [("Yes.", "base"), ("Yes, of course.", picked)]
            item = store.add_item(f"{number}?", answers, purpose="compare", comparison=comparison)
            store.judge(store.present(item, "ann").token, Verdict(RANKED, [[0], [1]]))
    words = ("mine", "--no-skills", "--json", "--set", "lora_rank=4")
    status, out, err = run_eval(*words)
    assert status == 0, err
    told = json.loads(out)
    names = ["base", "best of 4", "0002-sft", "0003-dpo"]
    assert [one["name"] for one in told["candidates"]] == names
    assert "Best of 4 is compared, too" in err and "--best-of 0 leaves it out" in err
    people, reward = told["judges"]
    assert people["judge"] == "people" and reward["judge"] == "reward of 0004-reward"
    one, best = people["results"]
    assert (one["candidate"], one["wins"], one["n"]) == ("0003-dpo", 3, 3)
    assert (best["candidate"], best["losses"], best["n"]) == ("best of 4", 2, 2)
    assert "1 votes of the blind comparison that still runs are left out." in err
    assert told["page"] == "mine/eval/report.html"
    status, out, _ = run_eval(*words)  # earlier results stay
    assert json.loads(out)["page"] == "mine/eval-2/report.html"
    status, out, _ = run_eval(*words, "--best-of", "0")
    assert [one["name"] for one in json.loads(out)["candidates"]] == ["base", *names[2:]]
    _, plan = plan_of("--reward", "mine/runs/0004-reward", "--best-of", "4")
    assert plan.project is not None and plan.project.folder.resolve() == project.folder.resolve()
    assert [row["prompt"] for row in plan.prompts] == QUESTIONS


def _comparison(project: Project, first: str, second: str, wanted: int = 3) -> int:
    from lorarlhf.preferences.blind_comparisons import add_comparison

    return add_comparison(project.store(), first, second, wanted).id


def test_a_reward_role_of_other_layers(
    runs: dict[str, str], run_eval: Eval, tiny_base: Path, tmp_path: Path
) -> None:
    """A mean-pooled head reads the states below its own layers, so it can't judge on others."""
    project = create(tmp_path / "mine", base=str(tiny_base), bits=16)
    how: dict[str, Any] = {"bits": 16, "compute_dtype": "float32"}
    upper = Backbone.load(str(tiny_base), **how, adapter_layers=1)
    upper.add_role("reward")
    saved(upper, project.folder / "runs/0001-reward", "reward", role="reward")
    whole = Backbone.load(str(tiny_base), **how, adapter_layers="all")
    saved(whole, project.folder / "runs/0002-dpo", "dpo")
    words = ("mine", "--prompts", "held.jsonl", "--no-skills")
    _, plan = plan_of(*words)
    assert plan.reward is None and plan.best_of == 0
    status, out, err = run_eval(*words, "--json")
    assert status == 0, err
    assert "The reward role is left out as a judge" in err and "because of 0002-dpo" in err
    assert json.loads(out)["judges"] == []
    for more in (("--reward", "mine/runs/0001-reward"), ("--best-of", "4")):
        status, _, err = run_eval(*words, *more)
        assert status == 2 and "Can't load these together" in err and "Loading" not in err
    last = Backbone.load(str(tiny_base), **how, adapter_layers=1)
    last.add_role("reward", pooling="last")  # reads only the last states
    saved(last, project.folder / "runs/0003-reward", "reward", role="reward")
    status, out, err = run_eval(*words, "--json")
    assert status == 0 and json.loads(out)["judges"][0]["judge"] == "reward of 0003-reward", err


def test_a_judge_that_fails_loses_no_answers(
    runs: dict[str, str], run_eval: Eval, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text("def f(prompts, completions, **more):\n    raise KeyError(1)")
    words = (runs["sft"], "--prompts", "held.jsonl", "--tasks", "tasks.jsonl", "--out", "out")
    status, _, err = run_eval(*words, "--judge-function", "bad.py:f")
    assert status == 2 and "The answers are in out/answers.jsonl" in err
    rows = (tmp_path / "out/answers.jsonl").read_text().splitlines()
    assert len(rows) == 5 and set(json.loads(rows[0])["answers"]) == {"base", "sft"}
    assert json.loads(rows[0])["verdicts"] == {}
    kept = read_json(tmp_path / "out/eval.json")
    assert len(kept["skills"]) == 2 and kept["candidates"][1]["kl"] is not None
    status, out, err = run_eval(*words, "--rater", "brief", "--json")  # the same folder again
    assert status == 0 and json.loads(out)["judges"][0]["judge"] == "rater brief", err


def test_judges_of_one_name_are_told_apart(
    runs: dict[str, str], run_eval: Eval, tmp_path: Path
) -> None:
    for name, score in (("a", 1), ("b", 2)):
        text = f"def score(prompts, completions, **more):\n    return [{score}.0] * len(prompts)\n"
        (tmp_path / f"{name}.py").write_text(text)
    words = [runs["sft"], "--prompts", "held.jsonl", "--no-skills", "--json"]
    words += ["--rater", "brief", "--rater", "brief"]
    words += ["--judge-function", "a.py:score", "--judge-function", "b.py:score"]
    status, out, err = run_eval(*words)
    assert status == 0, err
    told = json.loads(out)
    judges = [one["judge"] for one in told["judges"]]
    assert judges == ["rater brief", "function a.py:score", "function b.py:score"]
    assert list(told["answers"][0]["verdicts"]) == judges


def test_best_of_n_has_seeds_of_its_own(
    runs: dict[str, str], run_eval: Eval, tiny: Backbone
) -> None:
    args, plan = plan_of(runs["sft"], "--prompts", "held.jsonl", "--temperature", "5")
    answering = Answering(tiny, plan, args, [])
    single = answering._best("one", [answering.rows[0]["prompt"]], 1)
    assert single[0].text != answering.base().answers[0].text


def test_no_judge_is_said(runs: dict[str, str], run_eval: Eval) -> None:
    status, out, err = run_eval(runs["sft"], "--prompts", "held.jsonl", "--no-skills")
    assert status == 0, err
    assert "Nobody has judged these answers." in out and "sft" in out


def test_only_the_tasks(runs: dict[str, str], run_eval: Eval) -> None:
    words = (runs["sft"], "--skills-only", "--tasks", "tasks.jsonl", "--json")
    status, out, err = run_eval(*words)
    assert status == 0, err
    told = json.loads(out)
    assert told["answers"] == [] and "candidates" not in told and len(told["skills"]) == 2


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "Say what to compare"),
        (("--best-of", "4"), "--best-of needs a reward role"),
        (("{sft}", "--best-of", "1"), "--best-of is 2 or more"),
        (("--best-of", "0"), "Say what to compare"),
        (("--best-of", "4", "--reward", "{reward}", "--skills-only"), "Leave out --reward"),
        (("{sft}", "--skills-only", "--rater", "brief"), "Leave out --rater"),
        (("{sft}", "--skills-only", "--prompts", "held.jsonl"), "Leave out --prompts"),
        (
            ("--best-of", "4", "--reward", "{reward}", "--limit-regressions", "0"),
            "short tasks are for policies",
        ),
        (("{sft}", "--samples", "0"), "--samples is 1 or more"),
        (("{sft}", "--temperature", "0"), "--temperature is above 0"),
        (("{sft}", "--rater", "cheery"), "no rater named 'cheery'"),
        (("{sft}", "--judge-prompt", "x.txt"), "name one with --judge-model"),
        (("{sft}", "--judge-function", "no.py:f"), "no.py, which does not exist"),
        (("{sft}", "--judge-model", "nowhere"), "nowhere"),
        (("{sft}", "--no-skills", "--limit-regressions", "0.1"), "--no-skills leaves out"),
        (("{sft}", "--prompts", "none.jsonl"), "none.jsonl"),
        (("{sft}", "--reward", "{sft}"), "has no reward adapter"),
        (("nothing",), "there is no such folder"),
    ],
)
def test_what_is_refused(
    runs: dict[str, str],
    run_eval: Eval,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    error: str,
) -> None:
    monkeypatch.setattr(evaluate, "load_backbone", None)  # refused before it is called
    status, _, err = run_eval(*(word.format(**runs) for word in words))
    assert status == 2 and error in err


def test_options_are_checked_without_a_base() -> None:
    args = build_parser().parse_args(["eval", "x", "--limit-regressions", "2"])
    with pytest.raises(UserError, match="share from 0 to 1"):
        check_options(args)
