"""SFT, DPO and ORPO by TRL's trainers: the policy learns, and the backbone comes back as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages import reward_model
from lorarlhf.stages.conversations import conversational
from lorarlhf.stages.dpo_orpo import DirectSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, balance, shuffled, train_kto
from lorarlhf.stages.sft import SFTSettings, train_sft
from lorarlhf.stages.trl.arguments import batch_arguments

DEMONSTRATIONS = [
    {"prompt": "Name a fish.", "completion": "A cod is a fish."},
    {"prompt": "Name a bird.", "completion": "A crow is a bird."},
    {"prompt": "Name a tree.", "completion": "An oak is a tree."},
    {"prompt": "Name a colour.", "completion": "Blue is a colour."},
]
PREFERENCES = [
    {"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No, I will not say."}
    for row in DEMONSTRATIONS
]
LABELLED = [
    {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
    for row, name in zip(PREFERENCES, ("chosen", "rejected") * 2, strict=True)
]


def state(backbone: Backbone, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)]).clone()


def base_state(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in backbone.model.named_parameters() if "lora_" not in n}


def settings_of(backbone: Backbone) -> dict[str, Any]:
    """What a stage borrows and must give back."""
    causal = backbone.causal
    return {
        "active": list(backbone.model.active_adapters),
        "forward": "forward" in causal.__dict__,
        "training": any(module.training for module in backbone.model.modules()),
        "checkpointing": causal.is_gradient_checkpointing,
        "layers": [layer.gradient_checkpointing for layer in backbone.decoder.layers],
        "cache": causal.config.use_cache,
        "hooks": len(causal.get_input_embeddings()._forward_hooks),
        "padding": backbone.tokenizer.padding_side,
        "template": backbone.tokenizer.chat_template,
        "stops": backbone.stop_ids,
        "pad": backbone.pad_id,
        "adapters": sorted(set(backbone.model.peft_config) - {"ref"}),
    }


def train(method: str, backbone: Backbone, run: Run, **settings: Any) -> dict[str, Any]:
    small = {"batch_size": 4, "micro_batch_size": 2, "epochs": 4, "learning_rate": 5e-3}
    if method == "sft":
        return train_sft(backbone, DEMONSTRATIONS, run, SFTSettings(**(small | settings)))
    if method == "kto":
        return train_kto(backbone, LABELLED, run, KTOSettings(**(small | settings)))
    return train_direct(backbone, PREFERENCES, run, method, DirectSettings(**(small | settings)))


@pytest.fixture
def with_reward(tiny: Backbone, randomise: Callable[..., None]) -> Backbone:
    """A backbone that also has the roles that no stage here may touch."""
    for seed, role in enumerate(("reward", "value")):
        tiny.add_role(role)
        randomise(tiny, role, seed=seed)
    return tiny


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto"])
def test_the_policy_learns_and_nothing_else_moves(
    with_reward: Backbone, tmp_path: Path, method: str
) -> None:
    backbone = with_reward
    before = {role: state(backbone, role) for role in ("policy", "reward", "value")}
    base, settings = base_state(backbone), settings_of(backbone)
    run = Run(tmp_path / "run", method, {"seed": 1})
    # Checkpointing is on by default on CUDA only; what it leaves behind must go everywhere.
    summary = train(method, backbone, run, epochs=6, trl={"gradient_checkpointing": True})
    assert summary["rows"] == 4
    assert summary["steps"] == 6
    assert summary["loss_last"] < 0.8 * summary["loss_first"]
    moved = state(backbone, "policy") != before["policy"]
    assert moved.float().mean() > 0.9
    for role in ("reward", "value"):
        assert torch.equal(state(backbone, role), before[role])
    after = base_state(backbone)
    assert after.keys() == base.keys()
    assert all(torch.equal(after[name], weight) for name, weight in base.items())
    assert settings_of(backbone) == settings
    assert not any(p.requires_grad for p in backbone.model.parameters())
    for role in ("policy", "reward", "value"):
        assert {p.dtype for p in backbone.parameters_of(role)} == {torch.float32}


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto"])
def test_in_4_bit_the_adapters_stay_float32(tiny_base: Path, tmp_path: Path, method: str) -> None:
    backbone = Backbone.load(str(tiny_base), bits=4, adapter_layers=2, lora_rank=4)
    seen: list[set[torch.dtype]] = []
    forward = backbone.decoder.layers[-1].register_forward_hook(
        lambda *_: seen.append({p.dtype for p in backbone.parameters_of("policy")})
    )
    summary = train(method, backbone, Run(tmp_path / "run", method, {}), epochs=3)
    forward.remove()
    assert all(dtypes == {torch.float32} for dtypes in seen)
    assert len(seen) >= 6
    assert {p.dtype for p in backbone.parameters_of("policy")} == {torch.float32}
    assert summary["loss_last"] < summary["loss_first"]


def test_after_sft_the_reference_is_the_policy(
    tiny: Backbone, tmp_path: Path, batch: Callable[..., Any]
) -> None:
    train("sft", tiny, Run(tmp_path, "sft", {}), epochs=1)
    assert torch.equal(state(tiny, "reference"), state(tiny, "policy"))
    ids, mask = batch(tiny, [8, 3])
    hidden = {}
    with torch.no_grad():
        for role in ("policy", "reference", "base"):
            with tiny.role(role):
                hidden[role] = tiny.forward.hidden(ids, mask)
    assert torch.equal(hidden["policy"], hidden["reference"])
    assert not torch.equal(hidden["policy"], hidden["base"])


def test_sft_makes_the_demonstrations_likelier(tiny: Backbone, tmp_path: Path) -> None:
    def greedy() -> str:
        from lorarlhf.backbone.generation import generate

        prompt = [{"role": "user", "content": "Name a fish."}]
        return generate(tiny, [prompt], temperature=0, max_new_tokens=20)[0].text

    assert greedy() != "A cod is a fish."
    train("sft", tiny, Run(tmp_path, "sft", {}), epochs=40, learning_rate=1e-2)
    assert greedy() == "A cod is a fish."


def test_dpo_measures_against_the_policy_as_it_was(tiny: Backbone, tmp_path: Path) -> None:
    train("sft", tiny, Run(tmp_path / "sft", "sft", {}), epochs=1)
    tuned = state(tiny, "policy")
    summary = train("dpo", tiny, Run(tmp_path / "dpo", "dpo", {}), epochs=3)
    assert summary["loss_first"] == pytest.approx(0.6931, abs=1e-3)  # log 2: policy is reference
    assert summary["accuracy_last"] == 1.0
    assert torch.equal(state(tiny, "reference"), tuned)
    assert not torch.equal(state(tiny, "policy"), tuned)


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto"])
def test_a_run_leaves_its_metrics_and_safe_files(
    tiny: Backbone, tmp_path: Path, method: str
) -> None:
    run = Run(tmp_path / "run", method, {"seed": 3})
    train(method, tiny, run, epochs=2)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row["stage"] == method for row in rows)
    measured = [row["step"] for row in rows if "chosen_logp" in row]  # by the health watch
    assert measured == ([] if method == "sft" else [0, 2])
    rows = [row for row in rows if "chosen_logp" not in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["loss"] > 0 for row in rows)
    roles_saved = ["policy", "reference"] if method == "sft" else ["policy"]
    assert sorted(p.name for p in (run.folder / "adapters").iterdir()) == roles_saved
    files = {path.suffix for path in run.folder.rglob("*") if path.is_file()}
    assert files == {".json", ".jsonl", ".safetensors"}


def test_the_same_seed_trains_the_same_policy(tiny_base: Path, tmp_path: Path) -> None:
    results = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        backbone = Backbone.load(
            str(tiny_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4
        )
        torch.manual_seed(len(results))
        train("sft", backbone, Run(tmp_path / name, "sft", {"seed": seed}), epochs=2)
        results.append(state(backbone, "policy"))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_an_exception_in_training_gives_the_backbone_back(tiny: Backbone, tmp_path: Path) -> None:
    settings = settings_of(tiny)
    layer = tiny.decoder.layers[-1]
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        train("sft", tiny, Run(tmp_path, "sft", {}), trl={"gradient_checkpointing": True})
    handle.remove()
    assert settings_of(tiny) == settings
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert not any(layer.disable_adapters for layer in roles.lora_layers(tiny.model))


# ---- settings and rows


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo", "kto"])
def test_an_unknown_trl_key_names_the_nearest(tiny: Backbone, tmp_path: Path, method: str) -> None:
    with pytest.raises(UserError, match="trl.warmup_step is not a field.*Did you mean warmup_st"):
        train(method, tiny, Run(tmp_path, method, {}), trl={"warmup_step": 3})


def test_a_trl_key_reaches_trls_config(tiny: Backbone, tmp_path: Path) -> None:
    summary = train("sft", tiny, Run(tmp_path, "sft", {}), trl={"max_steps": 2})
    assert summary["steps"] == 2


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_fitted_role_scores_by_the_states_that_it_was_fitted_to(
    tiny: Backbone, pooling: str
) -> None:
    """Forwards are saved; the scores are those of the role itself."""
    pairs = reward_model.encode_pairs(tiny, conversational(PREFERENCES, tiny, False), pooling)
    _, votes = reward_model.start_from_fit(tiny, pairs, pooling)
    by_states = reward_model.score_states(tiny, pairs, votes.chosen, votes.rejected)
    by_forwards = reward_model.score_pairs(tiny, pairs, "scores")
    assert by_states == pytest.approx(by_forwards, abs=1e-5)
    assert reward_model.pair_accuracy(by_states) == 1.0  # of the pairs that it was fitted to
    assert reward_model.pair_accuracy(by_states[[1, 0, 2, 2, 3, 3, 4, 5]]) == 0.5
    reward_model.set_score_scale(tiny, by_states)
    head = tiny.heads["reward"]
    assert head.score_mean.item() == pytest.approx(by_forwards.mean(), abs=1e-5)
    assert head.score_std.item() == pytest.approx(by_forwards.std(), abs=1e-5)


def test_an_unknown_method_is_refused(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of dpo, orpo, not kto2"):
        train("kto2", tiny, Run(tmp_path, "dpo", {}))


def test_kto_takes_pairs_and_labels_and_weighs_the_rarer_kind(
    tiny: Backbone, tmp_path: Path
) -> None:
    once = KTOSettings(batch_size=2, micro_batch_size=2, trl={"max_steps": 1})
    pairs = train_kto(tiny, PREFERENCES, Run(tmp_path / "pairs", "kto", {}), once)
    assert (pairs["rows"], pairs["good"], pairs["bad"]) == (8, 4, 4)
    # Policy and reference are the same: both kinds have the loss 1 - sigmoid(0).
    assert pairs["loss_first"] == pytest.approx(0.5, abs=1e-4)
    uneven = SimpleNamespace(desirable_weight=1.0, undesirable_weight=1.0)
    balance(uneven, good=6, bad=2, given={})
    assert (uneven.desirable_weight, uneven.undesirable_weight) == (1.0, 3.0)
    balance(uneven, good=2, bad=6, given={"desirable_weight": 1.0})  # the user's own stay
    assert (uneven.desirable_weight, uneven.undesirable_weight) == (1.0, 3.0)


def test_kto_orders_rows_by_the_seed_and_starts_with_the_longest() -> None:
    order = shuffled(LABELLED, seed=1)
    assert sorted(map(str, order)) == sorted(map(str, LABELLED)) and order == shuffled(LABELLED, 1)
    assert len({str(shuffled(LABELLED * 4, seed)) for seed in range(3)}) == 3
    size = [len(row["prompt"] + row["completion"]) for row in order]
    assert size[0] == max(size)


def test_kto_refuses_one_kind_alone_and_single_answers(tiny: Backbone, tmp_path: Path) -> None:
    good = [row for row in LABELLED if row["label"]]
    with pytest.raises(UserError, match="2 good and 0 bad"):
        train_kto(tiny, good, Run(tmp_path, "kto", {}))
    with pytest.raises(UserError, match="a micro_batch_size of 2 or more"):
        train_kto(tiny, LABELLED, Run(tmp_path, "kto", {}), KTOSettings(micro_batch_size=1))
    alone = KTOSettings(micro_batch_size=1, trl={"loss_type": "apo_zero_unpaired", "max_steps": 1})
    assert train_kto(tiny, LABELLED, Run(tmp_path / "one", "kto", {}), alone)["steps"] == 1


def test_batch_arguments_keep_the_batch_size() -> None:
    def sizes(batch: int, micro: int) -> tuple[int, ...]:
        return tuple(batch_arguments(batch, micro).values())

    assert (sizes(8, 4), sizes(8, 3), sizes(2, 4), sizes(5, 4)) == ((4, 2), (2, 4), (2, 1), (1, 5))


def test_plain_rows_become_conversations(tiny: Backbone) -> None:
    rows = [{"prompt": "Hi", "completion": "Hello", "id": "p1", "kind": None}]
    assert conversational(rows, tiny, plain=True) == [{"prompt": "Hi", "completion": "Hello"}]
    assert conversational(rows, tiny, plain=False) == [
        {
            "prompt": [{"role": "user", "content": "Hi"}],
            "completion": [{"role": "assistant", "content": "Hello"}],
        }
    ]
    talk = [{"messages": [{"role": "user", "content": "Hi"}]}]
    assert conversational(talk, tiny, plain=False) == talk
    assert conversational([{"text": "as it is"}], tiny, plain=False) == [{"text": "as it is"}]
    pair = {"prompt": "Hi", "chosen": "Ho", "rejected": "No", "margin": 1.0}
    also_single = pair | {"completion": "Ho", "label": True}
    assert conversational([also_single], tiny, plain=True) == [pair]


def test_without_a_chat_template_plain_texts_still_train(tiny: Backbone, tmp_path: Path) -> None:
    tiny.tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        train("sft", tiny, Run(tmp_path / "a", "sft", {}))
    summary = train("sft", tiny, Run(tmp_path / "b", "sft", {}), plain=True)
    assert summary["loss_last"] < summary["loss_first"]
