"""What a run says about its base and its adapters, and which runs fit together."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.project.lineage import (
    SourceRun,
    check_same_base,
    read_any_source_run,
    read_source_run,
)
from lorarlhf.project.load import load_backbone
from lorarlhf.project.settings import resolve
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run's folder with the three files that say something; adapters without weights."""

    def run(
        name: str = "run",
        role: str = "policy",
        base: str = "smollm2-135m",
        path: str = "/models/small",
        rank: int = 8,
        **config: Any,
    ) -> Path:
        folder = tmp_path / name
        adapter = folder / "adapters" / role
        adapter.mkdir(parents=True)
        about = {"base": base, "base_path": path, "bits": 8, "config": config}
        note = {"role": role, "base": base, "adapter_layers": 2}
        peft = {"r": rank, "lora_alpha": 16, "layers_to_transform": [2, 3]}
        peft["base_model_name_or_path"] = path
        files = {folder / "run.json": about, adapter / "lorarlhf.json": note}
        for file, content in (files | {adapter / "adapter_config.json": peft}).items():
            file.write_text(json.dumps(content))
        return folder

    return run


def settings_of(parent: SourceRun) -> dict[str, Any]:
    return {item.name: item.value for item in parent.settings_values()}


def test_a_run_says_base_precision_and_shape(make: Make) -> None:
    folder = make(chat_template="/t.jinja", compute_dtype="float32", plain=True, epochs=3)
    parent = read_source_run(folder, "policy", "--init")
    assert settings_of(parent) == {
        "base": "smollm2-135m",
        "bits": 8,
        "adapter_layers": 2,
        "lora_rank": 8,
        "lora_alpha": 16,
        "compute_dtype": "float32",
        "chat_template": "/t.jinja",
        "plain": True,
    }
    assert parent.name == f"--init {folder}"


def test_an_adapters_own_folder_says_the_same(make: Make) -> None:
    folder = make()
    parent = read_source_run(folder / "adapters/policy", "policy", "RUN")
    assert settings_of(parent) == settings_of(read_source_run(folder, "policy", "RUN"))
    assert parent.adapter == folder / "adapters/policy"


def test_without_run_json_the_adapter_itself_is_read(make: Make) -> None:
    folder = make(base="org/model", path="org/model")
    (folder / "run.json").unlink()
    found = settings_of(read_source_run(folder, "policy", "RUN"))
    assert found == {
        "base": "org/model",
        "adapter_layers": 2,
        "lora_rank": 8,
        "lora_alpha": 16,
    }


def test_an_adapter_that_peft_alone_wrote_covers_all_layers(tmp_path: Path) -> None:
    peft = {"r": 4, "lora_alpha": 8, "base_model_name_or_path": "org/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(peft))
    found = settings_of(read_source_run(tmp_path, "policy", "--init"))
    assert found["adapter_layers"] == "all" and found["base"] == "org/model"


def test_the_folder_that_was_loaded_is_loaded_again(make: Make, tmp_path: Path) -> None:
    there = tmp_path / "model"
    there.mkdir()
    # Relative when the run was made: the name alone would be looked for elsewhere now.
    parent = read_source_run(make(base="model", path=str(there)), "policy", "RUN")
    assert parent.loads == str(there)
    gone = read_source_run(make("gone", base="org/model", path="/no/more"), "policy", "RUN")
    assert gone.loads == "org/model"
    packaged = read_source_run(make("packaged", path=str(there)), "policy", "RUN")
    assert packaged.loads == "smollm2-135m"  # fetched again where the cache was emptied


def test_a_missing_role_names_those_that_are_there(make: Make) -> None:
    with pytest.raises(UserError, match="has no reward adapter .it has policy"):
        read_source_run(make(), "reward", "--reward")


def test_an_adapter_of_another_role_is_refused(make: Make) -> None:
    folder = make(role="value") / "adapters/value"
    with pytest.raises(UserError, match="is a value adapter, and a reward is needed"):
        read_source_run(folder, "reward", "--reward")


def test_a_reference_may_become_a_policy(make: Make) -> None:
    folder = make(role="reference") / "adapters/reference"
    assert read_source_run(folder, "policy", "--init").role == "reference"


def test_a_folder_that_is_not_there_names_a_run_like_it(make: Make, tmp_path: Path) -> None:
    make("reward_1")
    with pytest.raises(UserError, match="--reward .*: there is no such folder. Did you mean .*1"):
        read_source_run(tmp_path / "reward_2", "reward", "--reward")


def test_a_bare_run_needs_no_certain_role(make: Make, tmp_path: Path) -> None:
    assert read_any_source_run(make(role="reward"), "RUN").base == "smollm2-135m"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not the folder of a finished run"):
        read_any_source_run(tmp_path / "empty", "RUN")


# ---- two runs


def pair(make: Make, **second: Any) -> list[SourceRun]:
    one = read_source_run(make("one", base="a", path="/a"), "policy", "--init")
    values = {"base": "a", "path": "/a"} | second
    return [one, read_source_run(make("two", role="reward", **values), "reward", "--reward")]


def test_runs_on_one_base_fit(make: Make) -> None:
    check_same_base(pair(make), base_is_named=False)


def test_one_base_under_two_names_fits(make: Make) -> None:
    check_same_base(pair(make, base="b"), base_is_named=False)


def test_runs_on_two_bases_are_refused_by_name(make: Make) -> None:
    parents = pair(make, base="b", path="/b")
    with pytest.raises(UserError, match="--init .*one was trained on the base a, and --reward .*b"):
        check_same_base(parents, base_is_named=False)
    check_same_base(parents, base_is_named=True)  # the adapters' fingerprints decide then


def test_adapters_of_two_shapes_are_refused(make: Make) -> None:
    with pytest.raises(UserError, match="lora_rank 8, and --reward .* with 16"):
        check_same_base(pair(make, rank=16), base_is_named=True)


# ---- the backbone


def test_the_backbone_is_loaded_as_the_run_says(
    tiny: Any, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", "sft", {"seed": 0, "compute_dtype": "float32"})
    run.base(tiny)
    tiny.save("policy", run.folder / "adapters/policy")
    parent = read_source_run(run.folder, "policy", "RUN")
    backbone = load_backbone(resolve("chat", inherited=parent.settings_values()))
    backbone.load_role("policy", parent.adapter)  # refuses another base or shape
    assert (backbone.base, backbone.bits, backbone.adapter_layers) == (str(tiny_base), 16, 2)
    assert capsys.readouterr().err == f"Loading {tiny_base} in 16 bit ...\n"
