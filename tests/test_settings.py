"""Settings from defaults, parent runs, a file, --set and flags; and what each error names."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from transformers import HfArgumentParser

from lorarlhf.backbone.memory_plan import STAGES as COUNTED
from lorarlhf.cli.parser import BACKBONE_KEYS, COMMAND_KEYS
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.project.settings import convert, describe, known_keys, resolve
from lorarlhf.project.settings_sources import SettingValue, from_set
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.setting_types import OpenFraction, PositiveInt, check_limits, settings_of
from lorarlhf.stages.table import STAGES


def fails(stage: str = "sft", config: Path | None = None, sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        resolve(STAGES.get(stage, stage), config=config, sets=sets)
    return str(caught.value)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ---- where values come from


def test_defaults_are_those_of_the_stage_and_of_the_backbone() -> None:
    settings = resolve(STAGES["sft"])
    assert (settings.base, settings.seed) == ("smollm2-135m", 0)
    assert settings.backbone["bits"] == 4 and settings.backbone["adapter_layers"] == "upper-half"
    assert settings.own["epochs"] == 3.0 and settings.own["max_tokens"] == 1024
    assert settings.trl == {} and settings.given == frozenset()


def test_a_run_s_own_values_hold_unless_they_are_named_again() -> None:
    earlier = [
        SettingValue("trl", {"loss_type": ["ipo"], "warmup_steps": 3}, "run.json"),
        SettingValue("epochs", -1.0, "run.json"),  # what this version refuses
        SettingValue("beta", 0.3, "run.json"),
        SettingValue("data", "votes.jsonl", "run.json"),
    ]
    with pytest.raises(UserError, match="run.json: epochs"):
        resolve(STAGES["dpo"], inherited=earlier)
    sets = ["epochs=2", "trl.warmup_steps=5"]
    settings = resolve(STAGES["dpo"], sets=sets, inherited=earlier)
    assert settings.trl == {"loss_type": ["ipo"], "warmup_steps": 5}
    assert settings.own["epochs"] == 2.0 and settings.own["beta"] == 0.3
    assert settings.given == {"epochs", "trl.warmup_steps"}
    assert resolve("score", inherited=earlier).trl == {}


def test_each_source_overrides_the_one_before(tmp_path: Path) -> None:
    config = write(tmp_path, "bits: 8\nseed: 1\nepochs: 2\nlearning_rate: 1e-3\n")
    settings = resolve(
        STAGES["sft"],
        config=config,
        sets=["epochs=5", "seed=2", "epochs=7"],
        flags={"base": None, "seed": 3},
        inherited=[SettingValue("bits", 16, "RUN"), SettingValue("lora_rank", 4, "RUN")],
    )
    assert settings.backbone["lora_rank"] == 4  # only the parent run says it
    assert settings.backbone["bits"] == 8  # the file beats the parent run
    assert settings.own["epochs"] == 7.0  # the last --set beats the file
    assert settings.seed == 3  # the flag beats --set
    assert settings.base == "smollm2-135m"  # a flag that was not given counts for nothing
    assert settings.given == {"bits", "seed", "epochs", "learning_rate"}


def test_what_a_parent_says_beyond_the_stage_is_left_out() -> None:
    settings = resolve(
        "score", inherited=[SettingValue("plain", True, "R"), SettingValue("epochs", 2, "R")]
    )
    assert settings.own == {"plain": True}


def test_the_trl_mapping_of_the_file_and_of_set_are_joined(tmp_path: Path) -> None:
    config = write(tmp_path, "trl:\n  warmup_steps: 2\n  max_steps: 3\ntrl.weight_decay: 0.1\n")
    settings = resolve(STAGES["dpo"], config=config, sets=["trl.max_steps=9", "trl={seed: 5}"])
    expected = {"warmup_steps": 2.0, "max_steps": 9, "weight_decay": 0.1, "seed": 5}
    assert settings.trl == expected
    assert settings.flat()["trl"] == expected


def test_values_of_set_are_yaml() -> None:
    assert from_set("plain=true").value is True
    assert from_set("learning_rate=1e-4").value == 1e-4
    assert from_set("epochs=-1.5E+2").value == -150.0
    assert from_set("chat_template=a=b.jinja").value == "a=b.jinja"
    assert from_set("device=").value is None
    assert from_set("trl.kwargs={a: [1, 2]}").value == {"a": [1, 2]}


@pytest.mark.parametrize("text", ["learning_rate=1e-4", 'learning_rate="1e-4"'])
def test_a_number_that_yaml_takes_for_text_becomes_a_number(text: str) -> None:
    value = resolve(STAGES["ppo"], sets=[text]).own["learning_rate"]
    assert value == 1e-4 and type(value) is float


def test_a_file_of_comments_changes_nothing(tmp_path: Path) -> None:
    assert resolve(STAGES["sft"], config=write(tmp_path, "# nothing\n")) == resolve(STAGES["sft"])


def test_the_chat_template_is_remembered_as_a_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = resolve(STAGES["sft"], sets=["chat_template=chat.jinja"])
    assert settings.backbone["chat_template"] == str(tmp_path / "chat.jinja")


# ---- keys


@pytest.mark.parametrize("name", [*STAGES, *COMMAND_KEYS])
def test_help_names_every_key(name: str) -> None:
    keys = STAGES[name].keys if name in STAGES else COMMAND_KEYS[name]
    named = set(keys.split(", ")) | set(BACKBONE_KEYS.split(", "))
    assert named == set(known_keys(STAGES.get(name, name)))


@pytest.mark.parametrize("name", STAGES)
def test_the_stage_takes_what_is_resolved(name: str) -> None:
    own = resolve(STAGES[name]).own
    made = STAGES[name].make_settings(own, {})
    taken = vars(made) | getattr(made, "config", {})
    assert all(taken[key] == value for key, value in own.items())
    assert "weight_decay" not in own  # TRL's field, and in PPO not ours


def test_the_stages_whose_memory_is_counted_are_those_of_the_table() -> None:
    assert set(COUNTED) == set(STAGES)


def test_only_ppo_has_the_setting_algorithm() -> None:
    for stage in ("sft", "reward", "dpo", "orpo", "kto"):
        error = fails(stage, sets=("algorithm=rloo", "trl.seed=1"))
        assert "there is no setting algorithm" in error


def test_a_base_is_text() -> None:
    assert "base is text, found 7" in fails(sets=("base=7",))


def test_an_unknown_key_names_the_nearest_and_the_line(tmp_path: Path) -> None:
    config = write(tmp_path, "# mine\nseed: 1\nlearning_rat: 0.1\n")
    error = fails(config=config)
    assert f"{config}, line 3" in error and "Did you mean learning_rate?" in error


def test_an_unknown_key_of_set_names_the_option() -> None:
    assert "--set updats=3: " in fails("ppo", sets=("updats=3",))
    assert "Did you mean updates?" in fails("ppo", sets=("updats=3",))


def test_a_key_of_trl_is_pointed_to_trl() -> None:
    assert "write trl.warmup_steps" in fails(sets=("warmup_steps=3",))
    assert "Did you mean TRL's trl.weight_decay?" in fails(sets=("weight_decy=3",))
    assert "trl.weight_decay" not in fails(stage="ppo", sets=("weight_decay=3",))


def test_a_key_like_no_other_lists_them_all() -> None:
    error = fails("chat", sets=("zzz=1",))
    assert "max_prompt_tokens" in error and "bits" in error


def test_an_unknown_field_of_trl_names_the_nearest_and_the_line(tmp_path: Path) -> None:
    config = write(tmp_path, "epochs: 1\ntrl:\n  warmup_step: 3\n")
    error = fails(config=config)
    assert f"{config}, line 3" in error and "Did you mean trl.warmup_steps?" in error


def test_trl_is_no_key_of_chat() -> None:
    assert "trl.seed" in fails("chat", sets=("trl.seed=1",))


# ---- types and ranges


@pytest.mark.parametrize(
    ("stage", "given", "said"),
    [
        ("ppo", "updates=abc", 'updates is a whole number, found the text "abc"'),
        ("ppo", "updates=2.5", "updates is a whole number, found 2.5"),
        ("ppo", "updates=true", "updates is a whole number, found true"),
        ("ppo", "updates=", "updates is a whole number, found nothing"),
        ("ppo", "updates=0", "updates is 1 or more, found 0"),
        ("ppo", "score_clip=x", 'score_clip is a number or nothing (null), found the text "x"'),
        ("ppo", "gamma=1.5", "gamma is from 0 to 1, found 1.5"),
        ("reward", "learning_rate=.nan", "learning_rate is a number, found nan"),
        ("sft", "learning_rate=.nan", "learning_rate is a number or nothing (null), found nan"),
        ("sft", "epochs=0", "epochs is above 0, found 0"),
        ("sft", "plain=1", "plain is true or false, found 1"),
        ("sft", "chat_template=5", "chat_template is text or nothing (null), found 5"),
        ("sft", "epochs={a: 1}", "epochs is a number, found a mapping"),
        ("sft", "epochs=[1]", "epochs is a number, found a list"),
        ("sft", "bits=5", "bits is 4, 8 or 16, found 5"),
        ("sft", "adapter_layers=some", "adapter_layers is upper-half, all, or a number"),
        ("sft", "device=gpu", "device is cuda, xpu, mps or cpu"),
        ("sft", "compute_dtype=int8", "compute_dtype is bfloat16, float16 or float32"),
        ("sft", "trl.max_steps=abc", 'trl.max_steps is a whole number, found the text "abc"'),
        ("sft", "trl=3", "trl is a mapping of TRL's fields, found 3"),
        ("reward", "pooling=max", "pooling is mean or last"),
        ("reward", "holdout=1", "holdout is above 0 and below 1"),
        ("sft", "epochs", "expected KEY=VALUE"),
        ("sft", "epochs=[1", "the value can't be read"),
    ],
)
def test_a_value_that_does_not_fit_says_what_was_expected(
    stage: str, given: str, said: str
) -> None:
    error = fails(stage, sets=(given,))
    assert error.startswith(f"--set {given}: ") and said in error


def test_values_that_fit_though_written_otherwise() -> None:
    own = resolve(STAGES["ppo"], sets=["updates=1e1", "score_clip=null", "kl_coef=0"]).own
    assert own["updates"] == 10 and type(own["updates"]) is int
    assert own["score_clip"] is None
    assert own["kl_coef"] == 0.0 and type(own["kl_coef"]) is float
    assert resolve(STAGES["sft"], sets=["adapter_layers=12"]).backbone["adapter_layers"] == 12
    assert resolve(STAGES["reward"], sets=["epochs=0"]).own["epochs"] == 0.0  # the fit alone


def test_trl_values_of_other_types_are_left_to_trl() -> None:
    sets = ["trl.gradient_checkpointing_kwargs={use_reentrant: true}"]
    assert resolve(STAGES["sft"], sets=sets).trl == {
        "gradient_checkpointing_kwargs": {"use_reentrant": True}
    }


def test_convert_tries_a_union_in_its_order() -> None:
    assert convert("12", int | str) == 12
    assert convert("all", int | str) == "all"
    assert describe(int | str) == "a whole number or text"
    with pytest.raises(ValueError, match="nan"):
        convert(float("nan"), float | None)


# ---- limits in types


class Elsewhere:
    """Stands for a class of another package."""

    __module__ = "trl.config"
    __annotations__ = {"theirs": int}
    theirs = 1


@dataclass
class Group:
    share: OpenFraction | None = 0.5
    seed: int = 0


@dataclass
class Config(Group, Elsewhere):
    known: ClassVar[tuple[str, ...]] = ()
    steps: PositiveInt = 3


def test_settings_are_those_of_our_own_classes_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Group, Config):
        monkeypatch.setattr(kind, "__module__", "lorarlhf.somewhere")
    found = settings_of(Config)
    assert [known.name for known in found] == ["steps", "share", "seed"]
    steps, share, seed = found
    assert (steps.kind, steps.default, seed.limit) == (int, 3, None)
    assert steps.limit is not None and steps.limit.words == "1 or more"
    assert share.kind == float | None and share.limit is not None
    assert share.limit.allows(0.1) and not share.limit.allows(1.0)


def test_an_object_is_checked_against_the_limits_of_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in (Group, Config):
        monkeypatch.setattr(kind, "__module__", "lorarlhf.somewhere")
    check_limits(Config(share=None))
    with pytest.raises(ValueError, match="share is above 0 and below 1, not 2.0"):
        check_limits(Config(share=2.0))
    with pytest.raises(ValueError, match="steps is 1 or more, not nan"):
        check_limits(Config(steps=float("nan")))  # type: ignore[arg-type]


def test_a_class_variable_of_the_config_is_no_field_of_trl() -> None:
    assert "has no field unused" in fails("ppo", sets=("trl.unused=[]",))


def test_every_setting_is_known_to_a_parser_without_limits() -> None:
    (made,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(
        ["--output_dir", "out", "--kl_target", "3", "--generation", "vllm"]
    )
    assert (made.kl_target, made.generation) == (3.0, "vllm")
    assert 10 <= len(inspect.get_annotations(PPOConfig)) <= 15


# ---- files


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    config = write(tmp_path, "seed: 1\nepochs: [1\n")
    assert f"{config}, line 2: this is not valid YAML" in fails(config=config)


def test_a_tag_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    config = write(tmp_path, "seed: !!python/object/apply:os.getcwd []\n")
    assert f"{config}, line 1" in fails(config=config)


def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    assert "expected one `key: value` a line" in fails(config=write(tmp_path, "- a\n- b\n"))


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path, "seed: 1\nepochs: 1\nseed: 2\n")
    assert f"{config}, line 3: seed is on line 1 already" in fails(config=config)


def test_a_missing_file_and_one_that_is_no_text_are_named(tmp_path: Path) -> None:
    assert "can't be read" in fails(config=tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is not UTF-8" in fails(config=tmp_path / "binary.yaml")
