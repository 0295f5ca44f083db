"""Rows that the base can't read are named before a base is loaded or an earlier run is touched."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer
from transformers.integrations import integration_utils

from lorarlhf.backbone.base_files import context_length, open_base
from lorarlhf.cli.main import main
from lorarlhf.cli.row_checks import prepare_rows
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.stages.table import STAGES as TABLE
from lorarlhf.stages.trl.arguments import _check_services
from tests.tiny import CHAT_TEMPLATE

Ask = Callable[..., str]
# No system turn, and turns that alternate, as Gemma's and Mistral's have it.
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
) + CHAT_TEMPLATE
USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("Yes.", "No."))
PAIR = {"chosen": GOOD, "rejected": BAD}
REWARD = "def length(completions, **columns):\n    return [1.0 for _ in completions]\n"
# stage: (option of the rows, what a row has besides its prompt, the fields of its answers)
STAGES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "sft": ("--data", {"completion": GOOD}, ("completion",)),
    "reward": ("--data", PAIR, ("chosen", "rejected")),
    "dpo": ("--data", PAIR, ("chosen", "rejected")),
    "orpo": ("--data", PAIR, ("chosen", "rejected")),
    "kto": ("--data", PAIR, ("completion",)),
    "ditto": ("--data", {"completion": GOOD}, ("completion",)),
    "ppo": ("--prompts", {}, ()),
}


@pytest.fixture
def ask(
    tmp_path: Path,
    tiny_base: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Ask:
    """Run a stage on rows in a folder with an earlier run; returns what is said.

    The run's files have to be as before, and the base must not be loaded.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORARLHF_DEBUG", raising=False)
    monkeypatch.setattr("lorarlhf.project.load.load_backbone", pytest.fail)
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "strict.jinja").write_text(STRICT)
    for name in ("run.json", "metrics.jsonl", "checkpoints/checkpoint-1/state.json"):
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text("{}")

    def run(stage: str, rows: list[dict[str, Any]], *words: str, base: str = "") -> str:
        option, rest, _ = STAGES[stage]
        write_jsonl(tmp_path / "rows.jsonl", [row | rest for row in rows])
        given = [stage, option, "rows.jsonl", "--out", "run", "--base", base or str(tiny_base)]
        given += ["--set", "bits=16", "--set", "compute_dtype=float32", *words]
        if stage == "ppo":
            given += ["--reward-function", "rewards.py:length"]
        assert main(given) == 2
        files = sorted(str(f.relative_to(tmp_path / "run")) for f in (tmp_path / "run").rglob("*"))
        kept = ["checkpoints", "checkpoints/checkpoint-1", "checkpoints/checkpoint-1/state.json"]
        assert files == [*kept, "metrics.jsonl", "run.json"]
        return capsys.readouterr().err

    return run


def prompts(*last: list[dict[str, str]], count: int = 6) -> list[dict[str, Any]]:
    """Rows with good prompts (all of them others), then these."""
    good = [[{"role": "user", "content": f"What is {number}?"}] for number in range(count)]
    return [{"prompt": prompt} for prompt in (*good, *last)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_row_that_the_template_refuses_is_named(stage: str, ask: Ask) -> None:
    strict = ("--set", "chat_template=strict.jinja")
    said = ask(stage, prompts([SYSTEM, USER], [USER, USER]), *strict)
    for line, roles in ((7, "system, user"), (8, "user, user")):
        assert f'rows.jsonl, line {line}, field "prompt": the chat template of ' in said
        assert f"refuses a conversation of the roles {roles}" in said
    assert "roles must alternate" in said and "--set chat_template=FILE" in said
    assert "TemplateError" not in said


def test_a_template_that_refuses_the_answer_alone_names_its_field(ask: Ask, tmp_path: Path) -> None:
    no_answers = (
        "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no') }}{% endif %}"
    )
    (tmp_path / "strict.jinja").write_text(no_answers + CHAT_TEMPLATE)
    for stage, (_, _, fields) in STAGES.items():
        if fields:
            said = ask(stage, prompts(count=8), "--set", "chat_template=strict.jinja")
            assert said.count(f'field "{fields[0]}": the chat template') == 3 and "... and" in said
            assert said.count("rows.jsonl, line ") == 3


def test_a_dialogue_that_the_template_refuses_is_named(ask: Ask, tmp_path: Path) -> None:
    talk = [USER, *GOOD]
    rows = [{"messages": talk}, {"messages": [SYSTEM, *talk]}, {"messages": [*talk, *GOOD]}]
    for more in ((), ("--set", "assistant_only=false")):
        write_jsonl(tmp_path / "talk.jsonl", rows)
        words = ("--data", "talk.jsonl", "--set", "chat_template=strict.jinja", *more)
        said = ask("sft", prompts(), *words)
        assert 'talk.jsonl, line 2, field "messages": the chat template' in said
        assert 'talk.jsonl, line 3, field "messages": the chat template' in said


@pytest.mark.parametrize("stage", STAGES)
def test_a_row_beyond_the_context_is_named(
    stage: str, ask: Ask, make_base: Callable[..., Path]
) -> None:
    base = str(make_base(max_position_embeddings=64))
    long = [{"role": "user", "content": "word " * 80}]
    short = ("--set", "max_new_tokens=20") if stage == "ppo" else ()
    said = ask(stage, prompts(long), *short, base=base)
    assert "rows.jsonl, line 7, " in said and f"more than {base} reads (64)" in said
    assert "line 6" not in said
    assert ("--set max_tokens=64" in said) == (stage not in ("reward", "ppo"))
    assert ("--set max_new_tokens=N" in said) == (stage == "ppo")


def test_a_row_that_fills_the_context_passes_and_one_token_more_does_not(
    make_base: Callable[..., Path],
) -> None:
    base = str(make_base(max_position_embeddings=64))
    encoder = open_base(base, bits=16, device="cpu").encoder
    settings = resolve(TABLE["sft"])
    row: dict[str, Any] = {"prompt": [USER], "completion": [{"role": "assistant", "content": ""}]}

    def total(text: str) -> int:
        row["completion"][0]["content"] = text
        return len(encoder.tokenize(encoder.render([*row["prompt"], *row["completion"]])))

    text = next("~" * n for n in range(64) if total("~" * n) == 64)
    for more, fits in (("", True), ("~", False)):
        row["completion"][0]["content"] = text + more
        with contextlib.nullcontext() if fits else pytest.raises(UserError, match="65 tokens"):
            prepare_rows(TABLE["sft"], encoder, [row], settings)


@pytest.mark.parametrize("stage", STAGES)
def test_a_token_without_a_row_in_the_embedding_is_named(
    stage: str, ask: Ask, tiny_base: Path, tmp_path: Path
) -> None:
    base = _with_tokens(tiny_base, tmp_path / "base", "<think>")
    said = ask(stage, prompts([{"role": "user", "content": "Do <think>"}]), base=str(base))
    assert 'rows.jsonl, line 7, field "prompt": the token <think> has the number 384' in said
    assert "has 384 rows" in said and "resize_token_embeddings" in said


def test_special_tokens_without_a_row_are_named_with_their_folder(
    ask: Ask, tiny_base: Path, tmp_path: Path
) -> None:
    base = _with_tokens(tiny_base, tmp_path / "base", "<unused>", pad_token="<padding>")
    for stage in STAGES:
        said = ask(stage, prompts(), base=str(base))
        assert f"The tokenizer in {base} has 386 tokens" in said
        assert "none for the padding token <padding> (number 385)" in said


def _with_tokens(base: Path, folder: Path, token: str, **special: str) -> Path:
    """A base whose tokenizer has tokens that its embedding has no rows for."""
    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([token])
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("gpt2", {"n_positions": 1024}, 1024),
        (
            "qwen2",
            {
                "max_position_embeddings": 32768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                },
            },
            131072,
        ),
        ("bloom", {}, None),
    ],
)
def test_the_context_is_what_the_configuration_says(
    family: str, settings: dict[str, Any], expected: int | None
) -> None:
    assert context_length(AutoConfig.for_model(family, **settings)) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_settings_that_can_not_be_used_are_refused_first(stage: str, ask: Ask) -> None:
    wrong = {
        "report_to=wandbb": "no service of transformers. Did you mean wandb?",
        "report_to=neptune": "neptune, which is not installed",
        "report_to=none, comet_ml": "comet_ml, which is not installed. Install it with `pip",
        "trl.output_dir=elsewhere": "trl.output_dir can't be set: a run's folder is named by --out",
        "trl.resume_from_checkpoint=run": "continued by --resume",
        "trl.save_strategy=epoch": "every save_steps steps",
        "trl.eval_strategy=steps": "trl.eval_strategy can't be set",
        "trl.push_to_hub=true": "nothing is uploaded",
        "trl.bf16=true": "set compute_dtype",
    }
    for setting, reason in wrong.items():
        assert reason in ask(stage, prompts(), "--set", setting)


def test_every_service_can_be_asked_whether_it_is_installed() -> None:
    for name in integration_utils.INTEGRATION_TO_CALLBACK:
        with contextlib.suppress(UserError):
            _check_services(name)
