"""Roles on disk: what is saved comes back, and what does not fit is refused in plain words."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.storage import CONFIG, FINGERPRINT, HEAD_KEY, NOTE, WEIGHTS, fingerprint
from lorarlhf.runtime.errors import UserError


@pytest.fixture
def saved(tiny: Backbone, randomise: Callable[..., None], tmp_path: Path) -> dict[str, Path]:
    """The folders of all four roles of `tiny`, each with random weights and its own head."""
    tiny.add_role("reference")
    tiny.add_role("reward", pooling="last")
    tiny.add_role("value")
    folders = {}
    for seed, role in enumerate(roles.ROLES):
        randomise(tiny, role, seed=seed)
    tiny.heads["value"].full_weight = torch.randn(2 * tiny.hidden_size)
    tiny.heads["reward"].score_mean.fill_(0.25)
    tiny.heads["reward"].score_std.fill_(3.5)
    for role in roles.ROLES:
        folders[role] = tiny.save(role, tmp_path / role)
    return folders


def fresh(folder: Path, **changes: Any) -> Backbone:
    settings = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4}
    return Backbone.load(str(folder), **(settings | {"seed": 9} | changes))


def outputs(backbone: Backbone, role: str, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), backbone.role(role):
        trunk = backbone.forward.trunk(ids, mask)
        hidden = backbone.forward.hidden(ids, mask, trunk)
        return backbone.heads[role](hidden, trunk) if role in backbone.heads else hidden


def test_a_loaded_role_gives_the_outputs_of_the_saved_one(
    tiny: Backbone, saved: dict[str, Path], tiny_base: Path, batch: Callable[..., Any]
) -> None:
    other = fresh(tiny_base)
    ids, mask = batch(tiny, [9, 4, 1])
    for role, folder in saved.items():
        other.load_role(role, folder)
    for role in roles.ROLES:
        assert torch.equal(outputs(tiny, role, ids, mask), outputs(other, role, ids, mask))
    head = other.heads["reward"]
    assert head.pooling == "last"
    assert (head.score_mean.item(), head.score_std.item()) == (0.25, 3.5)
    assert other.heads["value"].pooling == "mean"
    assert other.model.active_adapter == roles.ADAPTERS["policy"]
    base = [p for name, p in other.model.named_parameters() if "lora_" not in name]
    assert not any(p.requires_grad for p in base)


def test_a_policy_loads_as_the_reference(
    tiny: Backbone, saved: dict[str, Path], tiny_base: Path, batch: Callable[..., Any]
) -> None:
    other = fresh(tiny_base)
    ids, mask = batch(tiny, [5])
    before = outputs(other, "policy", ids, mask)
    other.load_role("reference", saved["policy"])
    assert torch.equal(outputs(other, "reference", ids, mask), outputs(tiny, "policy", ids, mask))
    assert torch.equal(outputs(other, "policy", ids, mask), before)


def test_a_plain_peft_folder_loads_without_our_note(
    tiny: Backbone, saved: dict[str, Path], tiny_base: Path, batch: Callable[..., Any]
) -> None:
    (saved["policy"] / NOTE).unlink()
    other = fresh(tiny_base)
    other.load_role("policy", saved["policy"])
    ids, mask = batch(tiny, [5])
    assert torch.equal(outputs(other, "policy", ids, mask), outputs(tiny, "policy", ids, mask))


def test_saving_twice_writes_the_same_bytes(tiny: Backbone, saved: dict[str, Path]) -> None:
    files = {path: path.read_bytes() for path in saved["reward"].iterdir()}
    tiny.save("reward", saved["reward"])
    assert {path: path.read_bytes() for path in saved["reward"].iterdir()} == files


def test_only_safetensors_and_json_are_written(saved: dict[str, Path]) -> None:
    for folder in saved.values():
        names = sorted(path.name for path in folder.iterdir())
        assert names == [CONFIG, WEIGHTS, NOTE]


def test_the_configs_tell_plain_peft_what_each_role_is(
    tiny: Backbone, saved: dict[str, Path]
) -> None:
    policy = json.loads((saved["policy"] / "adapter_config.json").read_text())
    reward = json.loads((saved["reward"] / "adapter_config.json").read_text())
    assert (policy["task_type"], policy["modules_to_save"]) == ("CAUSAL_LM", None)
    assert (reward["task_type"], reward["modules_to_save"]) == ("SEQ_CLS", ["score"])
    assert policy["base_model_name_or_path"] == tiny.base_path
    assert tiny.model.peft_config["reward"].modules_to_save is None  # only on disk


def test_an_adapter_of_another_base_is_refused_naming_both(
    saved: dict[str, Path], make_base: Callable[..., Path], tiny_base: Path
) -> None:
    stranger = fresh(make_base(seed=1))
    with pytest.raises(UserError) as refusal:
        stranger.load_role("policy", saved["policy"])
    assert str(tiny_base) in str(refusal.value)
    assert stranger.base in str(refusal.value)
    assert str(saved["policy"]) in str(refusal.value)


def test_a_role_of_an_earlier_version_is_not_refused_for_its_fingerprint(
    tiny: Backbone, saved: dict[str, Path], tiny_base: Path, batch: Callable[..., Any]
) -> None:
    file = saved["policy"] / NOTE
    note = json.loads(file.read_text())
    assert note.pop(FINGERPRINT) == fingerprint(tiny)
    file.write_text(json.dumps(note | {"base_fingerprint": "0123456789abcdef"}))
    other = fresh(tiny_base)
    other.load_role("policy", saved["policy"])
    ids, mask = batch(tiny, [5])
    assert torch.equal(outputs(other, "policy", ids, mask), outputs(tiny, "policy", ids, mask))


def test_the_fingerprint_is_the_same_in_every_precision(
    tiny: Backbone, tiny_base: Path, make_base: Callable[..., Path]
) -> None:
    own = fingerprint(tiny)
    assert fingerprint(fresh(tiny_base, bits=4, compute_dtype="bfloat16")) == own
    assert fingerprint(fresh(tiny_base, bits=16, compute_dtype="bfloat16")) == own
    assert fingerprint(fresh(tiny_base, bits=16, compute_dtype="float16")) == own
    assert fingerprint(fresh(tiny_base, adapter_layers="all", lora_rank=2)) == own
    assert fingerprint(fresh(make_base(seed=1))) != own
    with torch.no_grad():  # a tuned copy of it: some weights that were small have turned round
        tiny.causal.get_input_embeddings().weight.add_(1e-4)
    assert fingerprint(tiny) != own


@pytest.mark.parametrize(
    ("changes", "role", "needed"),
    [
        ({"lora_rank": 2}, "reward", "--set lora_rank=4"),
        ({"adapter_layers": 1}, "reward", "changes layer 2.*--set adapter_layers=2"),
        ({"adapter_layers": 3}, "value", "reads the states below.*--set adapter_layers=2"),
    ],
)
def test_a_shape_without_room_is_refused_and_says_what_fits(
    saved: dict[str, Path],
    tiny_base: Path,
    randomise: Callable[..., None],
    batch: Callable[..., Any],
    changes: dict[str, int],
    role: str,
    needed: str,
) -> None:
    other = fresh(tiny_base, **changes)
    other.add_role(role)
    randomise(other, role)
    ids, mask = batch(other, [4])
    before = outputs(other, role, ids, mask)
    with pytest.raises(UserError, match=needed):
        other.load_role(role, saved[role])
    assert torch.equal(outputs(other, role, ids, mask), before)  # the old one is still there


@pytest.mark.parametrize("changes", [{"lora_alpha": 8}, {"lora_rank": 6}, {"adapter_layers": 3}])
def test_a_larger_shape_and_another_scale_compute_the_same(
    tiny: Backbone,
    saved: dict[str, Path],
    tiny_base: Path,
    batch: Callable[..., Any],
    changes: dict[str, int],
) -> None:
    other = fresh(tiny_base, **changes)
    ids, mask = batch(tiny, [5])
    for role in ("policy", "reward"):
        other.load_role(role, saved[role])
        torch.testing.assert_close(
            outputs(other, role, ids, mask), outputs(tiny, role, ids, mask), rtol=1e-5, atol=1e-5
        )


def test_a_head_of_another_size_is_refused_and_the_old_role_stays(
    tiny: Backbone, saved: dict[str, Path], tiny_base: Path, batch: Callable[..., Any]
) -> None:
    other = fresh(tiny_base)
    other.load_role("value", saved["value"])
    ids, mask = batch(other, [4])
    before = outputs(other, "value", ids, mask)
    weights = load_file(saved["value"] / WEIGHTS)
    weights[HEAD_KEY] = weights[HEAD_KEY][:, : tiny.hidden_size].contiguous()
    save_file(weights, saved["value"] / WEIGHTS)
    with pytest.raises(
        UserError, match=f"reads {tiny.hidden_size} numbers a token.*Train the role"
    ):
        other.load_role("value", saved["value"])
    assert torch.equal(outputs(other, "value", ids, mask), before)


def test_an_adapter_of_another_family_is_refused_by_name(
    saved: dict[str, Path], tiny_base: Path
) -> None:
    weights = load_file(saved["policy"] / WEIGHTS)
    renamed = {name.replace("q_proj", "query"): weight for name, weight in weights.items()}
    save_file(renamed, saved["policy"] / WEIGHTS)
    with pytest.raises(UserError, match="is on query, and the roles here are on down_proj, gate"):
        fresh(tiny_base).load_role("policy", saved["policy"])


def test_a_folder_without_an_adapter_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no adapter in .*nowhere"):
        tiny.load_role("policy", tmp_path / "nowhere")


@pytest.mark.parametrize("name", [WEIGHTS, NOTE, CONFIG])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_damaged_file_is_refused(
    tiny: Backbone, saved: dict[str, Path], name: str, kept: int
) -> None:
    file = saved["policy"] / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match="The adapter in .*policy is damaged"):
        tiny.load_role("policy", saved["policy"])
