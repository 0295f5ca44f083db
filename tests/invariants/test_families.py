"""PPO keeps its promises on every known model family, in every precision, and on other families.

The bases are tiny and random: what differs from one test to the next is the family's own way with
masks, positions, norms and logits. The details of PPO are in tests/test_ppo_trainer.py.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_trunk import FAMILIES
from torch import nn

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import (
    first_trained_layer,
    make_micro_batches,
    policy_logprobs,
    token_values,
)
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.rewards.role import score_answers
from tests.ppo_runs import PROMPTS, base_weights, rows_of, weights

# Gemma's LM head is its embedding, which is scaled on the way in and not on the way out.
TIED = {name: {"tie_word_embeddings": True} for name in ("gemma2", "gemma3_text")}
KNOWN = {name: fields | TIED.get(name, {}) for name, fields in FAMILIES.items()}
# Another name for the final norm, and dropout of its own, which must stay out of PPO; upper layers
# that take keys and values from lower ones.
NOT_SPLIT: dict[str, dict[str, Any]] = {
    "gpt_neox": {"hidden_dropout": 0.2, "attention_dropout": 0.2},
    "gemma4_text": {
        **{"num_hidden_layers": 6, "num_kv_shared_layers": 2},
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 384},
        "layer_types": ["sliding_attention", "full_attention"] * 3,
    },
}
# PEFT gives experts adapters in every layer, whichever layers it is told.
EXPERTS = {
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
}
SMALL: dict[str, Any] = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 3}
SMALL |= {"lora_rank": 4}

Base = Callable[..., Path]
Ready = Callable[..., Backbone]
PPO = Callable[..., PPOTrainer]


@pytest.fixture(scope="module", params=KNOWN)
def base(request: pytest.FixtureRequest, make_base: Base) -> Path:
    """The folder of a tiny base of each known family in turn."""
    return make_base(family=request.param, **KNOWN[request.param])


@pytest.fixture(scope="session")
def ready(randomise: Callable[..., None]) -> Ready:
    """`ready(folder, **settings)`: policy, its frozen copy and a reward role, none of them zero.

    PPO makes the value from the reward role.
    """

    def load(folder: Path, keeps_trunk: bool = True, **settings: Any) -> Backbone:
        backbone = Backbone.load(str(folder), **(SMALL | settings))
        backbone.forward.keeps_trunk &= keeps_trunk
        randomise(backbone, "policy", seed=1)
        backbone.freeze_reference()
        backbone.add_role("reward")
        randomise(backbone, "reward", seed=2)
        return backbone

    return load


@pytest.fixture
def ppo(tmp_path: Path) -> PPO:
    """`ppo(backbone, folder="run", **settings)`: a trainer of one epoch on four short answers."""

    def build(backbone: Backbone, folder: str = "run", **settings: Any) -> PPOTrainer:
        defaults = {"updates": 1, "rollout_batch_size": 4, "micro_batch_size": 2}
        defaults |= {"max_new_tokens": 4, "num_ppo_epochs": 1, "critic_warmup": 0}
        defaults |= {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
        places = {"output_dir": str(tmp_path / folder), "use_cpu": True, "disable_tqdm": True}
        args = PPOConfig(**(places | defaults | settings))
        return PPOTrainer(backbone, args, [{"prompt": prompt} for prompt in PROMPTS])

    return build


def check_first_update(metrics: dict[str, float]) -> None:
    """The first pass over a rollout sees the policy that wrote it, and that is the reference."""
    assert metrics["ratio"] == 1.0
    for name in ("approx_kl", "clip_fraction", "kl", "skipped_steps"):
        assert metrics[name] == 0.0, name
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    # Layers that let no gradient through would leave everything above as it is.
    assert metrics["grad_norm_policy"] > 1e-4 and metrics["grad_norm_value"] > 1e-4


def everything(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The weights of every role and of the base."""
    parts = {role: weights(backbone, role) for role in roles.ROLES}
    return parts | {"base": base_weights(backbone)}


def check_only_policy_and_value_moved(before: dict[str, torch.Tensor], backbone: Backbone) -> None:
    moved = {name: (now != before[name]).float() for name, now in everything(backbone).items()}
    for name in ("reference", "reward", "base"):
        assert not moved[name].any(), name
    for role in ("policy", "value"):
        first = first_trained_layer(backbone, PPOConfig("out"), role)
        trained = sum(p.numel() for p in backbone.parameters_of(role, first))
        assert moved[role].sum() > 0.9 * trained, role


# ---- every known family


@pytest.mark.parametrize(("bits", "dtype"), [(16, "float32"), (4, "bfloat16")])
def test_the_ratio_is_1_and_only_policy_and_value_move(
    base: Path, ready: Ready, ppo: PPO, bits: int, dtype: str
) -> None:
    backbone = ready(base, bits=bits, compute_dtype=dtype)
    assert backbone.forward.keeps_trunk
    trainer = ppo(backbone, updates=2)
    before = everything(backbone)
    trainer.train()
    first, second = rows_of(trainer)
    check_first_update(first)
    check_only_policy_and_value_moved(before, backbone)
    # The next rollout is of a policy that has left the reference: the zero above says something.
    assert second["kl"] != 0.0
    assert second["ratio"] == 1.0
    assert all(math.isfinite(value) for value in second.values()), second


def test_a_kept_trunk_changes_no_update(base: Path, ready: Ready, ppo: PPO) -> None:
    found = []
    for keeps in (True, False):
        backbone = ready(base, keeps_trunk=keeps)
        # A head that reads the final state alone says the same with and without a kept trunk.
        head, final = backbone.heads["reward"], torch.linspace(-1, 1, backbone.hidden_size)
        head.full_weight = torch.cat([0 * final, final])[-len(head.full_weight) :]
        assert (head.trunk_weight is not None) == keeps
        trainer = ppo(backbone, f"trunk-{keeps}", num_ppo_epochs=2, adam_epsilon=1e-3)
        trainer.train()
        trained = backbone.parameters_of("policy") + backbone.parameters_of("value")
        found.append((rows_of(trainer)[0], trained))
    (kept, kept_weights), (plain, plain_weights) = found
    assert kept == pytest.approx(plain, rel=1e-5, abs=1e-5)
    for ours, theirs in zip(kept_weights, plain_weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def sayings(backbone: Backbone) -> dict[str, list[float]]:
    """What all four roles say of a few answers: scores, values and log-probabilities."""
    prompts, texts = PROMPTS[:3], ["A cod.", "No", "It is made of wax, and wax alone."]
    ids = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    answers = [Completion(t, i, ended=False) for t, i in zip(texts, ids, strict=True)]
    (micro,) = make_micro_batches(backbone, [backbone.encode(p) for p in prompts], answers, size=3)
    said = {"reward": score_answers(backbone, prompts, texts)}
    with torch.no_grad():
        for role in ("policy", "reference"):
            with backbone.role(role):
                said[role] = policy_logprobs(backbone, micro, 1.0)[0].tolist()
        with backbone.role("value"):
            said["value"] = token_values(backbone, micro).tolist()
    return said


def test_saved_roles_say_the_same_in_a_fresh_backbone(
    base: Path, ready: Ready, ppo: PPO, tmp_path: Path
) -> None:
    trained = ready(base)
    ppo(trained, learning_rate=0.1).train()  # far enough for the policy to differ from its copy
    said = sayings(trained)
    assert said["policy"] != said["reference"]
    fresh = Backbone.load(str(base), **SMALL, seed=9)
    for role in roles.ROLES:
        trained.save(role, tmp_path / role)
        fresh.load_role(role, tmp_path / role)
    assert sayings(fresh) == said


def test_a_resumed_run_is_the_run_that_was_not_stopped(base: Path, ready: Ready, ppo: PPO) -> None:
    settings: dict[str, Any] = {"num_ppo_epochs": 2, "num_minibatches": 2}
    whole, rest = ready(base), ready(base)
    straight = ppo(whole, "whole", updates=3, **settings)
    straight.train()
    ppo(ready(base), "parts", updates=2, **settings).train()
    torch.rand(5)  # the process's random state is another one now
    resumed = ppo(rest, "parts", updates=3, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in rows_of(resumed)] == [1, 2, 3]
    assert rows_of(resumed) == rows_of(straight)
    for role in roles.ROLES:
        assert torch.equal(weights(rest, role), weights(whole, role)), role


# ---- families that are not on the list


@pytest.mark.parametrize("family", NOT_SPLIT)
def test_a_family_that_cannot_be_split_says_so_and_runs_the_plain_forward(
    make_base: Base, ready: Ready, ppo: PPO, family: str
) -> None:
    lines: list[str] = []
    folder = make_base(family=family, **NOT_SPLIT[family])
    backbone = ready(folder, log=lines.append)
    assert not backbone.forward.keeps_trunk
    assert any("can't be run separately" in line and str(folder) in line for line in lines)
    trainer = ppo(backbone)
    assert backbone.heads["value"].trunk_weight is None
    before = everything(backbone)
    check_first_update(trainer.update())
    check_only_policy_and_value_moved(before, backbone)


def test_a_family_that_splits_at_one_layer_only(make_base: Base, ready: Ready, ppo: PPO) -> None:
    """Gemma 4's last two layers read the keys of the two below: in between there is no cutting."""
    folder = make_base(family="gemma4_text", **NOT_SPLIT["gemma4_text"])
    backbone = ready(folder, adapter_layers=4)
    assert backbone.forward.keeps_trunk and backbone.split == 2
    assert [backbone.forward.splits_at(layer) for layer in (2, 3, 4)] == [True, False, False]
    trainer = ppo(backbone)
    assert trainer.learner.first_layer == {"policy": 3, "value": 4}
    before = everything(backbone)
    check_first_update(trainer.update())
    check_only_policy_and_value_moved(before, backbone)


@pytest.mark.parametrize("family", KNOWN | NOT_SPLIT | EXPERTS)
def test_no_adapter_is_in_the_trunk(
    make_base: Base, ready: Ready, batch: Callable[..., Any], family: str
) -> None:
    """The trunk is run with the policy's adapter active, and all other roles run on it."""
    backbone = ready(make_base(family=family, **(KNOWN | NOT_SPLIT | EXPERTS)[family]))
    ids, mask = batch(backbone, [9, 5])
    kept = backbone.forward.trunk(ids, mask)
    for role in ("policy", "reference", "reward", "base"):
        with torch.no_grad(), backbone.role(role):
            above = backbone.forward.hidden(ids, mask, kept)
            plain = backbone.forward.hidden(ids, mask)
        torch.testing.assert_close(above[mask.bool()], plain[mask.bool()], rtol=0, atol=1e-5)


# ---- every precision, dropout, checkpointing


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_precision_starts_at_ratio_1(
    tiny_base: Path, ready: Ready, ppo: PPO, bits: int, dtype: str
) -> None:
    backbone = ready(tiny_base, bits=bits, compute_dtype=dtype)
    assert (backbone.bits, backbone.compute_dtype) == (bits, getattr(torch, dtype))
    trainer = ppo(backbone)
    before = everything(backbone)
    check_first_update(trainer.update())
    check_only_policy_and_value_moved(before, backbone)
    for role in roles.ROLES:  # their heads are among them
        assert {weight.dtype for weight in backbone.parameters_of(role)} == {torch.float32}, role


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_of_the_adapters_is_off_in_ppo(
    tiny_base: Path, ready: Ready, ppo: PPO, checkpointing: bool
) -> None:
    """Also where layers are put in train mode, which they must be to recompute activations."""
    found = []
    for dropout in (0.0, 0.5):
        backbone = ready(tiny_base, lora_dropout=dropout)
        rates = {m.p for m in backbone.model.modules() if isinstance(m, nn.Dropout)}
        assert rates == ({dropout} if dropout else set())
        settings = {"updates": 2, "gradient_checkpointing": checkpointing}
        trainer = ppo(backbone, f"dropout-{dropout}", **settings)
        trainer.train()
        check_first_update(rows_of(trainer)[0])
        found.append(rows_of(trainer))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("family", "bits", "dtype"),
    [("llama", 16, "float32"), ("gemma2", 16, "float32"), ("llama", 4, "bfloat16")],
)
def test_gradient_checkpointing_changes_no_weight(
    make_base: Base, ready: Ready, ppo: PPO, family: str, bits: int, dtype: str
) -> None:
    folder = make_base(family=family, **KNOWN[family])
    found, forward = [], []
    for checkpointing in (False, True):
        backbone = ready(folder, bits=bits, compute_dtype=dtype)
        trainer = ppo(backbone, f"on-{checkpointing}", gradient_checkpointing=checkpointing)
        ran: list[int] = []
        top = backbone.decoder.layers[-1].mlp
        top.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        trainer.train()
        forward.append(len(ran))
        found.append(torch.cat([weights(backbone, "policy"), weights(backbone, "value")]))
    assert forward[1] > forward[0]  # layers did run again in the backward
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-6)
