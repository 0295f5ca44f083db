"""The learning rates that a stage chooses where its settings have none."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.runtime.files import read_json, write_jsonl
from lorarlhf.runtime.run import Run
from lorarlhf.stages import step_size
from lorarlhf.stages.ditto import DittoSettings, train_ditto
from lorarlhf.stages.dpo_orpo import DirectSettings, DPOSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.step_size import demonstration_rate, fill_in_ditto_rates, rate_for
from tests.training_steps import ctrl_c_at, rows_of

Row = dict[str, Any]
PAIRS = [
    {"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "Never."} for n in range(8)
]
EDITS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
SMALL_DITTO: Row = {"rounds": 1, "steps": 1, "answers": 1, "max_new_tokens": 4, "sft_epochs": 1.0}


# ---- the rule


@pytest.mark.parametrize(("width", "rate"), [(64, 5e-4), (576, 5e-4), (1152, 2.5e-4), (5760, 5e-5)])
def test_wider_bases_take_smaller_steps(width: int, rate: float) -> None:
    assert rate_for(width, 450) == rate_for(width, 3) == pytest.approx(rate)
    assert demonstration_rate(width) == pytest.approx(2 * rate)


def test_many_votes_take_smaller_steps() -> None:
    assert rate_for(576, 4 * 450) == pytest.approx(2.5e-4)
    assert rate_for(1152, 100 * 450) == pytest.approx(2.5e-5)


@pytest.mark.parametrize(("row", "rate"), [("chosen", 2.5e-4), ("label", 3.54e-4)])
def test_two_single_answers_count_as_a_pair(row: str, rate: float) -> None:
    args = SimpleNamespace(num_train_epochs=3.0, max_steps=-1)
    found = step_size.fill_in_pair_rate(args, DPOSettings(), 576, [{row: "x"}] * 600)
    assert found == {"learning_rate": args.learning_rate}
    assert args.learning_rate == pytest.approx(rate)
    args.max_steps, args.num_train_epochs = 225, 90.0  # 1,800 rows, and the steps count more
    step_size.fill_in_pair_rate(args, DPOSettings(), 576, [{row: "x"}] * 30)
    assert args.learning_rate == pytest.approx(rate)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {"learning_rate": 5e-4, "sft_learning_rate": 1e-3}),
        # 3 rounds of 75 steps of 8 pairs are 4 times the pairs of the sweep
        ({"steps": 75}, {"learning_rate": 2.5e-4, "sft_learning_rate": 1e-3}),
        ({"learning_rate": 1e-5}, {"sft_learning_rate": 1e-3}),
        ({"trl": {"learning_rate": 1e-5}, "sft_learning_rate": 0.0}, {"learning_rate": 1e-5}),
    ],
)
def test_ditto_counts_the_pairs_of_all_rounds(settings: Row, found: Row) -> None:
    args = SimpleNamespace(learning_rate=1e-5)  # TRL's own, or what the settings name
    assert fill_in_ditto_rates(args, DittoSettings(**settings), 576, EDITS) == found
    assert args.learning_rate == found.get("learning_rate", 1e-5)


# ---- in the stages


def loaded(base: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A backbone that is twice as wide as the measured one is said to be."""
    backbone = Backbone.load(str(base), bits=16, compute_dtype="float32")
    monkeypatch.setattr(step_size, "MEASURED_WIDTH", backbone.hidden_size / 2)
    return backbone


def rates_of(folder: Path) -> list[float]:
    """The step sizes of a run, in their order."""
    return [row["learning_rate"] for row in rows_of(folder / "metrics.jsonl") if "loss" in row]


@pytest.mark.parametrize(
    ("method", "settings", "rate"),
    [
        ("dpo", {}, 2.5e-4),
        ("orpo", {}, 2.5e-4),
        ("kto", {}, 2.5e-4),
        ("sft", {}, 5e-4),
        ("dpo", {"learning_rate": 2e-3}, 2e-3),
        ("kto", {"trl": {"learning_rate": 3e-3}}, 3e-3),
        ("sft", {"trl": {"learning_rate": 3e-3}}, 3e-3),
    ],
)
def test_a_rate_that_is_given_replaces_the_default(
    method: str,
    settings: Row,
    rate: float,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = loaded(tiny_base, monkeypatch)
    kinds = {"dpo": DPOSettings, "orpo": DirectSettings, "kto": KTOSettings, "sft": SFTSettings}
    watched = {} if method == "sft" else {"evaluations": 0}
    made: Any = kinds[method](**{"epochs": 1} | watched | settings)
    run = Run(tmp_path, method, {"seed": 0})
    if method == "kto":
        found = train_kto(backbone, PAIRS, run, made)
    elif method == "sft":
        found = train_sft(backbone, EDITS, run, made)
    else:
        found = train_direct(backbone, PAIRS, run, method, made)
    assert found["learning_rate"] == rate
    assert rows_of(tmp_path / "metrics.jsonl")[0]["learning_rate"] == pytest.approx(rate)


def test_both_parts_of_ditto_have_their_rates(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DittoSettings(**SMALL_DITTO)
    backbone = loaded(tiny_base, monkeypatch)
    found = train_ditto(backbone, EDITS, Run(tmp_path, "ditto", {"seed": 0}), settings)
    assert (found["sft_learning_rate"], found["learning_rate"]) == (5e-4, 2.5e-4)
    assert rates_of(tmp_path) == pytest.approx([5e-4, 2.5e-4])
    assert settings.learning_rate is None  # the caller's own, and fit for another base


@pytest.fixture
def command(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Row]:
    """Train in tmp_path/run from the command line; what its record names."""
    write_jsonl(tmp_path / "rows.jsonl", EDITS)

    def run(stage: str, *more: str, status: int = 0) -> Row:
        words = [stage, "--data", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "run")]
        words += ["--base", str(tiny_base), "--set", "bits=16", "--set", "compute_dtype=float32"]
        assert main([*words, *more]) == status, capsys.readouterr().err
        config: Row = read_json(tmp_path / "run/run.json")["config"]
        return config

    return run


@pytest.mark.parametrize(
    ("words", "recorded"), [((), 1e-3), (("--set", "trl.learning_rate=0.003"), 3e-3)]
)
def test_the_record_of_a_run_names_the_rate_that_it_trains_with(
    words: tuple[str, ...], recorded: float, command: Callable[..., Row], tmp_path: Path
) -> None:
    config = command("sft", "--set", "epochs=1", *words)
    assert config["learning_rate"] == rates_of(tmp_path / "run")[0] == pytest.approx(recorded)


def test_the_record_of_ditto_names_both_rates(command: Callable[..., Row], tmp_path: Path) -> None:
    sets = [word for name, value in SMALL_DITTO.items() for word in ("--set", f"{name}={value}")]
    config = command("ditto", *sets)
    used = [config["sft_learning_rate"], config["learning_rate"]]
    assert used == [1e-3, 5e-4] == pytest.approx(rates_of(tmp_path / "run"))


def test_a_resumed_run_keeps_its_rate_though_the_rule_has_changed(
    command: Callable[..., Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ctrl_c_at(2):
        command("sft", "--set", "epochs=4", status=130)
    monkeypatch.setattr(step_size, "DEMONSTRATION_RATE", 0.5)
    assert command("sft", "--resume")["learning_rate"] == 1e-3
    rates = rates_of(tmp_path / "run")
    assert len(rates) == 4 and rates == sorted(rates, reverse=True) and rates[0] <= 1e-3
