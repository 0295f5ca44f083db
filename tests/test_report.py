"""The report: the figures of a run, its headline, and torn or missing files."""

import json
import re
from pathlib import Path

import pytest
from report_page import RUN, SUMMARY, Page, sample_rows, write_demo, write_rows

from lorarlhf.evaluation.report import _flat, build_html, write_report
from lorarlhf.evaluation.report_headline import headline, stage_label, title
from lorarlhf.runtime.errors import UserError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder)
    return folder


@pytest.fixture(scope="module")
def page(demo: Path) -> Page:
    return Page((demo / "report.html").read_text(encoding="utf-8"))


def test_the_tables_show_the_numbers_of_the_summary(page: Page) -> None:
    assert page.row("Comparisons won, ties as half (95% interval)") == ["22%", "78% (71–84%)"]
    assert page.row("Won among the 80 pairs of similar length") == ["25%", "75%"]
    assert page.row("Answers that ended before the token limit") == ["10%", "12%"]
    assert page.row("Wins") == ["25", "92"]
    assert page.row("Ties") == ["3", "3"]
    assert page.row("Rater's rule, mean") == ["0.26", "0.55"]
    assert page.row("Mean length (tokens)") == ["30.4", "33.2"]
    assert page.row("KL from the reference (nats)") == ["0", "5.51"]
    assert page.row("Pairs the reward role orders right (guessing: 50%)") == ["–", "77% of 208"]
    assert page.row("sample pairs") == ["1 min 11 s"]
    assert page.row("Total") == ["8 min 10 s"]
    assert page.row("One update of PPO") == ["12.7 s"]
    assert page.row("Peak memory") == ["1,812 MB"]
    assert page.row("Copies of the base in memory") == ["1"]
    assert page.row("Size of the base in memory") == ["98 MB"]
    assert page.row("ppo.learning_rate") == ["0.0001"]
    assert page.row("ppo.whiten") == ["true"]
    assert page.row("seed") == ["7"]
    assert "Mean length changed by 9%, which is within 30%." in page.words


def test_the_best_of_n_is_a_row() -> None:
    best = {"n": 4, "kl_bound": 0.6363, "win_rate": {"rate": 0.64, "ci95": [0.57, 0.71]}}
    page = Page(build_html(SUMMARY | {"best_of_n": best}, None, None, None))
    label = "Best of 4 answers without tuning"
    assert page.row(f"{label}: comparisons won") == ["36%", "64% (57–71%)"]
    assert page.row(f"{label}: KL, at most (nats)") == ["0", "0.64"]


def test_the_headline_explains_the_interval() -> None:
    assert headline(SUMMARY, {}) == (
        "After 26 updates of PPO, held-out answers won 78% of comparisons against the base "
        "(95% interval 71–84%), better than chance."
    )
    close = {"win_rate": {"rate": 0.55, "ci95": [0.46, 0.64]}}
    assert headline(close, {}) == (
        "Held-out answers won 55% of comparisons against the base "
        "(95% interval 46–64%), which may still be chance."
    )
    worse = {"win_rate": {"rate": 0.3, "ci95": [0.2, 0.4]}}
    assert headline(worse, {}).endswith("(95% interval 20–40%), worse than chance.")


def test_the_headline_of_a_single_stage() -> None:
    assert headline({"updates": 3, "kl_per_sequence": 1.234}, {"stage": "ppo"}) == (
        "After 3 updates of PPO, the KL of the policy from its reference is 1.23 nats per answer."
    )
    assert headline({"heldout_accuracy": 0.74, "n": 60}, {"stage": "reward"}) == (
        "The reward role orders 74% of 60 held-out pairs as the rater does."
    )
    assert headline({}, RUN) == "This run's status is “finished” after 5 min 12 s."


def test_samples_are_side_by_side_with_score_and_verdict(page: Page) -> None:
    for number in range(6):
        assert f"What about number {number}?" in page.words
    assert page.words.count("score -0.31") == 6
    assert page.words.count("score 0.84") == 6
    assert page.words.count("The answer after tuning wins.") == 2
    assert page.words.count("The answer before tuning wins.") == 2
    assert page.words.count("A tie.") == 2
    assert "A lot,\nand gladly!" in page.words


def test_a_torn_line_becomes_a_note(page: Page, demo: Path) -> None:
    lines = (demo / "metrics.jsonl").read_text().count("\n") + 1
    assert f"metrics.jsonl: line {lines} could not be read and was ignored." in page.words
    assert "left out" not in page.words


def test_missing_files_are_named_in_the_notes(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "“How training went” is left out: metrics.jsonl is missing" in page.words
    assert "“Answers” is left out: samples.jsonl is missing" in page.words
    assert page.words.count("is left out") == 2
    assert page.row("Wins") == ["25", "92"]
    assert "svg" not in [tag for tag, _ in page.tags]


def test_a_broken_summary_becomes_a_note(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"base": "smol')
    (tmp_path / "run.json").write_text("[1]")
    write_rows(tmp_path / "samples.jsonl", sample_rows())
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "summary.json could not be read" in page.words
    assert "run.json does not hold a JSON object" in page.words
    assert "What about number 5?" in page.words


def test_a_run_of_one_stage(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    rows = [{"step": step, "loss": 1 / step, "rewards/accuracies": 0.5} for step in range(1, 2001)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    steps = [{"step": s, "prompt": "Hello?", "completion": f"hi {s}", "score": s} for s in range(5)]
    write_rows(tmp_path / "samples.jsonl", steps)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "DPO run on smollm2-135m" in page.words
    assert "Training: DPO" in page.words
    assert page.row("beta") == ["0.1"]
    assert page.row("trl.warmup_steps") == ["3"]
    assert page.row("versions.trl") == ["1.16.0"]
    assert page.row("Total") == ["5 min 12 s"]
    assert "“Before and after” is left out" in page.words
    assert page.words.count("Prompt 1") == 1
    assert re.findall(r"hi \d", page.words) == ["hi 0", "hi 2", "hi 4"]


def test_numbers_that_are_none_or_not_finite_leave_gaps() -> None:
    summary = {"win_rate": {"rate": 10**400}, "rule_score": {"before": float("nan"), "after": 0.5}}
    rows = [{"stage": "ppo", "step": 1, "score": float("inf"), "kl": None, "value_loss": "much"}]
    page = Page(build_html(summary, rows, None, None))
    assert page.row("Rater's rule, mean") == ["–", "0.50"]
    assert "“How training went” is left out" in page.words


def test_conversations_are_shown_as_turns() -> None:
    prompt = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    samples = [{"prompt": prompt, "base": "a", "tuned": "b", "verdict": 1}]
    words = Page(build_html(None, None, samples, None)).words
    assert "user: Hi!\nassistant: Hello." in words
    assert "The answer after tuning wins." in words


def test_same_folder_gives_the_same_bytes(demo: Path) -> None:
    before = (demo / "report.html").read_bytes()
    assert write_report(demo) == demo / "report.html"
    assert (demo / "report.html").read_bytes() == before
    assert sorted(path.name for path in demo.iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "samples.jsonl",
        "summary.json",
    ]


def test_a_failed_write_keeps_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "report.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_without_a_run_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to report on"):
        write_report(tmp_path / "nowhere")


def test_settings_are_flattened() -> None:
    assert _flat({"a": 1, "b": {"c": {"d": 2}, "e": []}}) == {"a": 1, "b.c.d": 2, "b.e": []}


def test_labels_of_stages() -> None:
    labels = {"sft": "SFT", "kto": "KTO", "rloo": "RLOO", "abc": "ABC"}
    labels |= {"reward": "reward", "reward_model": "reward model", "demo": "demo"}
    assert {stage: stage_label(stage) for stage in labels} == labels


def test_the_title_names_the_stage_and_the_base() -> None:
    assert title(SUMMARY, {}) == "RLHF demo on smollm2-135m"
    assert title({}, RUN) == "DPO run on smollm2-135m"
    assert title({"algorithm": "rloo"}, {"stage": "ppo"}) == "RLOO run"
    assert title({}, {"stage": "reward", "base": "C:\\models\\my-base"}) == "Reward run on my-base"


def test_the_headline_of_a_preference_stage_is_about_its_pairs() -> None:
    summary = {"rows": 200, "steps": 40, "loss_first": 0.6931, "loss_last": 0.41}
    assert headline(summary | {"accuracy_last": 0.83}, {"stage": "dpo"}) == (
        "After 40 steps of DPO on 200 rows, the policy orders 83% of the last pairs right "
        "(guessing: 50%), and the loss went from 0.69 to 0.41."
    )
    assert headline(summary, {"stage": "sft"}) == (
        "After 40 steps of SFT on 200 rows, the loss went from 0.69 to 0.41."
    )
    assert headline({"loss_last": 1.5}, {"stage": "kto"}) == "After KTO, the loss is 1.50."
    assert headline({"loss_last": 0.4, "margin_last": 1.25}, {"stage": "kto"}) == (
        "After KTO, good answers have an implied reward 1.25 above bad ones (at the start: 0), "
        "and the loss is 0.40."
    )
    broken = {"loss_last": float("nan")}
    assert headline(broken, {"stage": "sft"}) == "This run's status is “unknown”."
