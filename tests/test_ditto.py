"""DITTO: edited answers as examples and as the better side, against answers of every round."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.data.readers import read_preferences
from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import create
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.runtime.run import Run
from lorarlhf.stages import ditto
from lorarlhf.stages.ditto import DittoSettings, train_ditto
from lorarlhf.stages.trl.arguments import Placement
from tests.training_steps import ctrl_c_at, rows_of

EDITS = [
    {"prompt": "Name a fish.", "completion": "A cod is a fish.", "worse": ["No fish."]},
    {"prompt": "Name a bird.", "completion": "A crow is a bird.", "worse": []},
    {"prompt": "Name a tree.", "completion": "An oak is a tree.", "worse": ["A tree!", " "]},
]
SMALL = {"rounds": 2, "steps": 2, "answers": 2, "max_new_tokens": 5, "batch_size": 4}
SMALL |= {"micro_batch_size": 2, "learning_rate": 5e-3, "sft_learning_rate": 5e-3}


def state(backbone: Backbone, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)]).clone()


def load(base: Path) -> Backbone:
    return Backbone.load(
        str(base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4, seed=3
    )


def train(backbone: Backbone, folder: Path, resume: bool = False, **changes: Any) -> Any:
    settings = DittoSettings(**(SMALL | changes))
    return train_ditto(backbone, EDITS, Run(folder, "ditto", {"seed": 1}), settings, resume)


def texts(rows: list[dict[str, Any]], name: str) -> list[str]:
    return [row[name][0]["content"] for row in rows]


def test_the_reference_is_the_policy_after_the_supervised_part(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen, save = state(tiny, "policy"), list[torch.Tensor](), ditto._save
    monkeypatch.setattr(
        ditto, "_save", lambda b, *rest: (seen.append(state(b, "policy")), save(b, *rest))
    )
    summary = train(tiny, tmp_path / "run")
    assert len(seen) == 3  # after the supervised part and after each round
    assert torch.equal(state(tiny, "reference"), seen[0])
    assert not torch.equal(seen[0], before) and not torch.equal(seen[1], seen[0])
    assert torch.equal(state(tiny, "policy"), seen[2]) and not torch.equal(seen[2], seen[1])
    assert (summary["rows"], summary["rounds"]) == (3, 2)
    assert summary["steps"] == 3 + 2 * 2  # three passes in one step each, then two rounds
    assert summary["loss_first"] == pytest.approx(math.log(2), abs=1e-4)
    assert not any(p.requires_grad for p in tiny.model.parameters())
    for role in ("policy", "reference"):
        assert (tmp_path / f"run/adapters/{role}/adapter_model.safetensors").is_file()


def test_each_round_is_counted_and_compared_with_the_same_reference(
    tiny: Backbone, tmp_path: Path
) -> None:
    train(tiny, tmp_path / "run")
    rows = [row for row in rows_of(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 8))
    assert [row["round"] for row in rows] == [0] * 3 + [1] * 2 + [2] * 2
    losses = {row["step"]: row["loss"] for row in rows}
    assert losses[4] == pytest.approx(math.log(2), abs=1e-4)  # policy and reference are the same
    assert losses[6] < math.log(2) - 1e-3  # the policy has moved, and the reference has not


def test_the_pairs_of_a_round_are_those_of_the_order(tiny: Backbone, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run", steps=5)
    edits = {row["prompt"]: row["completion"] for row in EDITS}
    for number in (1, 2):
        rows = rows_of(tmp_path / f"run/rounds/{number}/pairs.jsonl")
        assert len(rows) == 5 * 4  # steps times batch size
        assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)
        asked = texts(rows, "prompt")
        chosen = texts(rows, "chosen")
        edited = [text == edits[p] for text, p in zip(chosen, asked, strict=True)]
        assert sum(edited) == 18  # 14 over the newest policy, 4 over what is below it
        assert {p for p, yes in zip(asked, edited, strict=True) if yes} == set(edits)
        assert not set(texts(rows, "rejected")) & set(edits.values())
        assert all(text.strip() for text in texts(rows, "rejected"))
    both = [rows_of(tmp_path / f"run/rounds/{n}/pairs.jsonl") for n in (1, 2)]
    assert {"No fish.", "A tree!"} & {*texts(both[0], "rejected"), *texts(both[1], "rejected")}


def test_a_run_that_was_stopped_goes_on_after_its_last_round(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(load(tiny_base), tmp_path / "whole")
    tune = ditto._tune

    def stopped(backbone: Any, run: Any, inputs: Any, done: Any) -> None:
        if done.rounds == 2:
            raise KeyboardInterrupt
        tune(backbone, run, inputs, done)

    monkeypatch.setattr(ditto, "_tune", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(load(tiny_base), tmp_path / "parts")
    assert not (tmp_path / "parts/adapters").exists()
    monkeypatch.setattr(ditto, "_tune", tune)
    assert train(load(tiny_base), tmp_path / "parts", resume=True) == whole
    for file in sorted((tmp_path / "whole/adapters").rglob("*.safetensors")):
        other = tmp_path / "parts/adapters" / file.relative_to(tmp_path / "whole/adapters")
        assert other.read_bytes() == file.read_bytes()
    kept = sorted(path.name for path in (tmp_path / "whole/checkpoints").iterdir())
    assert kept == ["checkpoint-5", "checkpoint-7"]
    # A finished run has nothing left to do, unless more rounds are asked for.
    assert train(load(tiny_base), tmp_path / "parts", resume=True, rounds=3)["rounds"] == 3


def test_the_minutes_are_those_of_all_parts(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = ditto._sample

    def slow(*given: Any) -> Any:
        given[-1].seconds += 40
        return sample(*given)

    monkeypatch.setattr(ditto, "_sample", slow)  # the base's answers, and those of a round
    run = Run(tmp_path, "ditto", {"seed": 1}, minutes=1)
    found = train_ditto(tiny, EDITS, run, DittoSettings(**(SMALL | {"rounds": 9})))
    assert found["rounds"] == 1 and found["steps"] == 3 + 1  # it ends within the first round
    assert run.about["trained_seconds"] > 80
    kept = json.loads((tmp_path / "checkpoints/checkpoint-4/state.json").read_text())
    assert kept["seconds"] == pytest.approx(run.about["trained_seconds"], abs=0.1)


def test_ctrl_c_in_the_last_step_of_a_part_stops_after_it(tiny: Backbone, tmp_path: Path) -> None:
    with ctrl_c_at(5), pytest.raises(KeyboardInterrupt):  # the last step of the first round
        train(tiny, tmp_path)
    assert (tmp_path / "checkpoints/checkpoint-5").is_dir()
    assert not (tmp_path / "rounds/2").exists()


def test_the_reference_is_not_computed_beforehand() -> None:
    placement = Placement(torch.device("cpu"), torch.float32, Path(), 0)
    settings = DittoSettings(trl={"precompute_ref_log_probs": True})
    with pytest.raises(UserError, match="would miss"):
        ditto.arguments(placement, settings)


def test_another_shape_is_refused_at_resume(
    tiny: Backbone, tiny_base: Path, tmp_path: Path
) -> None:
    train(tiny, tmp_path, rounds=1)
    other = Backbone.load(
        str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=8
    )
    with pytest.raises(UserError, match="adapters of another shape"):
        train(other, tmp_path, resume=True)


def test_answers_that_are_all_like_the_edit_are_an_error(
    tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ditto, "_sample", lambda b, rows, *rest: [[" "], [""], ["\n"]])
    rows = [row | {"worse": [row["completion"]]} for row in EDITS]
    with pytest.raises(UserError, match="nothing to compare the edited answers with"):
        run = Run(tmp_path, "ditto", {"seed": 0})
        train_ditto(tiny, rows, run, DittoSettings(**(SMALL | {"sft_epochs": 0.0})))


def test_without_the_supervised_part_the_base_is_the_reference(
    tiny: Backbone, tmp_path: Path
) -> None:
    before = state(tiny, "policy")
    summary = train(tiny, tmp_path, rounds=1, sft_epochs=0.0)
    assert torch.equal(state(tiny, "reference"), before) and summary["steps"] == 2


def test_plain_texts_and_answers_that_fit_into_the_context(
    make_base: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, asked, generate = load(make_base(max_position_embeddings=48)), set(), ditto.generate

    def noted(*args: Any, **how: Any) -> Any:
        asked.add(how["max_new_tokens"])
        return generate(*args, **how)

    monkeypatch.setattr(ditto, "generate", noted)
    settings = DittoSettings(**(SMALL | {"rounds": 1, "plain": True, "max_new_tokens": 500}))
    train_ditto(backbone, EDITS, Run(tmp_path, "ditto", {"seed": 0}), settings)
    rows = rows_of(tmp_path / "rounds/1/pairs.jsonl")
    assert all(isinstance(row[name], str) for row in rows for name in ("chosen", "rejected"))
    assert asked == {48 - max(len(backbone.encode(row["prompt"])) for row in EDITS)}


# ---- the command


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    small = ["bits=16", "compute_dtype=float32", "lora_rank=4"]
    small += [f"{name}={value}" for name, value in SMALL.items()]

    def run(*words: str) -> tuple[int, str, str]:
        sets = [part for text in small for part in ("--set", text)]
        status = main(["ditto", *words, *sets])
        return (status, *capsys.readouterr())

    return run


def test_a_projects_edits_are_what_it_learns_from(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, tiny_base: Path
) -> None:
    project = create(tmp_path / "mine", base=str(tiny_base), bits=16)
    status, _, err = command("mine")
    assert status == 2 and "nobody has written a better answer" in err
    store = project.store()
    for number, edited in enumerate(("It is one.", None)):
        item = store.add_item(f"What is {number}?", [("Good.", "base"), ("No idea.", "runs/1")])
        verdict = Verdict("ranked", [[0], [1]], edited=edited)
        store.judge(store.present(item, "ann").token, verdict)
    store.close()
    status, out, err = command("mine", "--json")
    assert status == 0 and "2 votes give 1 rows for ditto" in err, err
    folder = project.folder / "runs/0001-ditto"
    assert json.loads(out)["rounds"] == 2 and read_json(folder / "run.json")["status"] == "done"
    (row,) = rows_of(project.folder / "runs/0001-ditto.votes.jsonl")
    assert row["worse"] == ["Good.", "No idea."]
    pairs = [row for n in (1, 2) for row in rows_of(folder / f"rounds/{n}/pairs.jsonl")]
    assert {"Good.", "No idea."} & set(texts(pairs, "rejected"))
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "DITTO run on" in report and "of DITTO on 1 rows" in report
    assert len(read_preferences(folder / "rounds/1/pairs.jsonl")) == 2 * 4  # as dpo reads them


def test_bad_rows_are_named(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path, tiny_base: Path
) -> None:
    row = {"prompt": "Why?", "completion": "So."}
    for bad, said in (
        ({"worse": "No."}, 'field "worse": expected a list of texts'),
        ({"worse": [3]}, 'field "worse": expected a list of texts'),
        ({"completion": ""}, 'field "completion": expected text'),
    ):
        lines = [json.dumps(row | {"worse": []}), json.dumps(row | bad)]
        (tmp_path / "edits.jsonl").write_text("\n".join(lines))
        status, _, err = command("--data", "edits.jsonl", "--base", str(tiny_base))
        assert status == 2 and f"line 2, {said}" in err, err
