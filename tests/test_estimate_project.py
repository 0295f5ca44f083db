"""`estimate --project`: memory and time of a stage on a project's own rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorarlhf.cli.estimate_time import in_words, passes
from lorarlhf.cli.main import main
from lorarlhf.preferences.merge import add_votes
from lorarlhf.preferences.records import ImportedVote, Verdict
from lorarlhf.project import device_queue
from lorarlhf.project.project import Project, create
from lorarlhf.stages.table import STAGES

PPO = {"updates": 2, "rollout_batch_size": 4, "max_new_tokens": 10, "num_ppo_epochs": 1}


@pytest.fixture
def project(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("LORARLHF_CACHE", str(tmp_path / "cache"))
    made = create(tmp_path / "mine", base=str(tiny_base), bits=16)
    better = Verdict("ranked", [[0], [1]])
    answers = (("It is good.", "base"), ("No idea.", "base"))
    store = made.store()
    add_votes(store, [ImportedVote(f"What is {n}?", answers, better) for n in range(8)])
    store.close()
    return made


def test_the_work_of_a_stage_by_hand() -> None:
    # 10 rows of 20 tokens, twice; half of the layers train: a token costs 1 + 2 * 0.5 = 2.
    assert passes(STAGES["sft"], {"epochs": 2}, 10, 20.0, 0.5) == 10 * 20 * 2 * 2
    # Two answers a pair, and the reference runs the upper half once more.
    assert passes(STAGES["dpo"], {"epochs": 2}, 10, 20.0, 0.5) == 2 * 10 * 20 * 2 * 2.5
    assert passes(STAGES["orpo"], {"epochs": 2}, 10, 20.0, 0.5) == 2 * 10 * 20 * 2 * 2
    # Without epochs every answer of a pair is read once.
    assert passes(STAGES["reward"], {"epochs": 0}, 10, 20.0, 0.5) == 2 * 10 * 20
    # 8 answers of 10 tokens to prompts of 20: sampled at 4 each, read by 1 + 3 * 0.5 roles, and
    # trained on once at 3 * 0.5.
    assert passes(STAGES["ppo"], PPO, 10, 20.0, 0.5) == 8 * (10 * 4 + 30 * (1 + 1.5 + 1.5))
    ditto = {"rounds": 2, "steps": 3, "batch_size": 4, "answers": 5, "max_new_tokens": 10}
    # Tuned once; 2 rounds of 50 answers; 2 * 3 * 4 pairs at 2.5 a token, as in DPO.
    assert passes(STAGES["ditto"], ditto | {"sft_epochs": 1}, 10, 20.0, 0.5) == (
        10 * 20 * 2 + 100 * (10 * 4 + 20) + 2 * 24 * 20 * 2.5
    )
    rounds = {"epochs": 1, "rounds": 2, "round_prompts": 3, "num_generations": 4}
    assert passes(STAGES["dpo"], rounds | {"max_new_tokens": 10}, 10, 20.0, 0.5) == (
        2 * 10 * 20 * 2.5 + 24 * (10 * 4 + 20) + 6 * 20 * 2 * 2.5
    )
    # RLOO answers half as many prompts twice each: as many answers, and as many passes over them.
    rloo = PPO | {"algorithm": "rloo", "num_generations": 2, "num_ppo_epochs": 3}
    assert passes(STAGES["ppo"], rloo, 10, 20.0, 0.5) == 8 * (10 * 4 + 30 * (1 + 1.5 + 3 * 1.5))


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_counted_with_its_defaults(name: str) -> None:
    defaults = {known.name: known.default for known in STAGES[name].own_settings()}
    assert passes(STAGES[name], defaults, 10, 20.0, 0.5) > 0


def test_time_in_words() -> None:
    assert [in_words(s) for s in (3, 44, 89, 100, 3600, 9000)] == [
        *("10 seconds", "40 seconds", "90 seconds", "2 minutes", "60 minutes", "2.5 hours")
    ]


def test_memory_and_time_of_a_stage_on_a_project(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    def estimate(*words: str) -> dict:
        status = main(["estimate", "--project", str(project.folder), "--json", *words])
        out, err = capsys.readouterr()
        assert status == 0, err
        return json.loads(out)

    def files() -> list[str]:
        there = (path.name for path in project.folder.rglob("*"))
        return sorted(name for name in there if not name.startswith("preferences"))

    before = files()
    found = estimate("--stage", "dpo", "--set", "epochs=2")
    assert found["needed"] > 1e6 and found["free"] > 0 and found["fits"] and not found["advice"]
    assert found["settings"]["epochs"] == 2 and "beta" in found["settings"]
    assert found["settings"]["learning_rate"] == 5e-4  # chosen by the base's width
    assert found["seconds"] > 0 and "first run of its kind" in found["time"]
    assert files() == before
    # A finished run says how fast this machine is: twice the epochs take twice its time.
    run = project.next_run("dpo")
    config = {"base": str(project_base(project)), "bits": 16, "adapter_layers": "upper-half"}
    about = {"stage": "dpo", "status": "done", "config": config | {"epochs": 1}}
    about |= {"rows": {"count": 8}, "seconds": 112.0}
    (run / "run.json").write_text(json.dumps(about))
    found = estimate("--stage", "dpo", "--set", "epochs=2")
    assert found["seconds"] == pytest.approx(12 + 2 * 100)
    assert found["time"] == "about 4 minutes, by the speed of the run 0001-dpo."


def project_base(project: Project) -> str:
    from lorarlhf.project.project import project_settings

    return next(item.value for item in project_settings(project) if item.name == "base")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name the stage"),
        (("--stage", "ppo"), "has no reward yet"),
        (("--stage", "dpo", "--set", "epochs=many"), "epochs is a number"),
        (("--stage", "sft"), "no demonstrations"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    project: Project, words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", "--project", str(project.folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_what_does_not_fit_is_said_with_what_would(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorarlhf.cli import preflight

    free: Callable[..., int] = lambda device: 1_000_000  # noqa: E731
    monkeypatch.setattr(preflight, "free_for_us", free)
    words = ["estimate", "--project", str(project.folder), "--stage", "dpo"]
    assert main(words) == 0
    assert "That does not fit." in capsys.readouterr().out
    # The model of the pages has some of it now, and gives it back before the job starts.
    device_queue.register_model(project.folder)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is None and "so the job may fit." in found["advice"]


def test_while_a_job_has_the_device_its_speed_and_memory_say_nothing(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["estimate", "--project", str(project.folder), "--stage", "dpo"]
    with device_queue.held("1.json", project.folder, 1, "A training"):
        assert main([*words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(words) == 0
    assert found["busy"] and found["needed"] > 1e6
    assert (found["free"], found["fits"], found["seconds"]) == (None, None, None)
    text = capsys.readouterr().out
    assert "how much will be free is not known while a training has the device" in text
    assert "Time: it can't be estimated while a training has the device." in text
