"""PPO keeps its promises on every known model family, in every precision, and on unknown ones.

The bases are tiny and random, so a family's own way of building masks, positions, norms and logits
is what differs from one test to the next; tests/test_ppo_trainer.py has the details on one family.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ppo_trainer import PROMPTS, base_weights, rows_of, weights
from test_trunk import FAMILIES
from torch import nn

from lorarlhf.backbone import roles
from lorarlhf.backbone.base import Backbone
from lorarlhf.generation import Completion
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.rollout import make_micro_batches, policy_logprobs, token_values
from lorarlhf.ppo.trainer import PPOTrainer
from lorarlhf.rewards.role import score_answers

LEARNED, FROZEN = ("policy", "value"), ("reference", "reward")
# Gemma's LM head is its embedding, which is scaled on the way in and not on the way out.
TIED = {"gemma2": {"tie_word_embeddings": True}, "gemma3_text": {"tie_word_embeddings": True}}

Ready = Callable[..., Backbone]
PPO = Callable[..., PPOTrainer]


@pytest.fixture(scope="module", params=FAMILIES)
def family_base(request: pytest.FixtureRequest, make_base: Callable[..., Path]) -> Path:
    """The folder of a tiny base of each known family in turn."""
    name = request.param
    return make_base(family=name, **(FAMILIES[name] | TIED.get(name, {})))


@pytest.fixture(scope="session")
def ready(randomise: Callable[..., None]) -> Ready:
    """`ready(folder, **settings)`: policy, its frozen copy and a reward role, none of them zero.

    PPO makes the value from the reward role. With `final_only` the reward's head reads the final
    state alone, and then it says the same with a kept trunk and without one.
    """

    def load(
        folder: Path, *, keeps_trunk: bool = True, final_only: bool = False, **settings: Any
    ) -> Backbone:
        defaults = {"bits": 16, "compute_dtype": "float32", "adapter_layers": 2, "lora_rank": 4}
        backbone = Backbone.load(str(folder), **(defaults | settings))
        backbone.keeps_trunk &= keeps_trunk
        randomise(backbone, "policy", seed=1)
        backbone.freeze_reference()
        backbone.add_role("reward")
        randomise(backbone, "reward", seed=2)
        if final_only:
            head = backbone.heads["reward"]
            final = torch.linspace(-1, 1, backbone.hidden_size)
            head.whole_weight = torch.cat([0 * final, final])[-len(head.whole_weight) :]
        return backbone

    return load


@pytest.fixture
def ppo(tmp_path: Path) -> PPO:
    """`ppo(backbone, folder="run", **settings)`: a trainer of one epoch on four short answers."""

    def build(backbone: Backbone, folder: str = "run", **settings: Any) -> PPOTrainer:
        defaults = {"updates": 1, "rollout_batch_size": 4, "micro_batch_size": 2}
        defaults |= {"max_new_tokens": 4, "num_ppo_epochs": 1, "critic_warmup": 0}
        defaults |= {"learning_rate": 1e-3, "value_learning_rate": 1e-3}
        args = PPOConfig(
            output_dir=str(tmp_path / folder),
            use_cpu=True,
            disable_tqdm=True,
            **(defaults | settings),
        )
        return PPOTrainer(backbone, args, [{"prompt": prompt} for prompt in PROMPTS])

    return build


def check_first_update(metrics: dict[str, float]) -> None:
    """The first pass over a rollout sees the policy that wrote it, and that is the reference."""
    assert metrics["ratio"] == 1.0
    assert metrics["approx_kl"] == 0.0
    assert metrics["clip_fraction"] == 0.0
    assert metrics["kl"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    assert metrics["policy_steps"] == 1 and metrics["skipped_steps"] == 0
    # A layer that lets no gradient through would leave everything above as it is.
    assert metrics["grad_norm_policy"] > 1e-4 and metrics["grad_norm_value"] > 1e-4


def everything(backbone: Backbone) -> dict[str, torch.Tensor]:
    """The weights of every role and of the base."""
    return {role: weights(backbone, role) for role in roles.ROLES} | {
        "base": base_weights(backbone)
    }


def check_only_learned_move(before: dict[str, torch.Tensor], backbone: Backbone) -> None:
    after = everything(backbone)
    for role in (*FROZEN, "base"):
        assert torch.equal(after[role], before[role]), role
    for role in LEARNED:
        assert (after[role] != before[role]).float().mean() > 0.9, role


# ---- every known family


@pytest.mark.parametrize(("bits", "compute_dtype"), [(16, "float32"), (4, "bfloat16")])
def test_the_ratio_is_1_and_only_policy_and_value_move(
    family_base: Path, ready: Ready, ppo: PPO, bits: int, compute_dtype: str
) -> None:
    backbone = ready(family_base, bits=bits, compute_dtype=compute_dtype)
    assert backbone.keeps_trunk
    trainer = ppo(backbone, updates=2)
    before = everything(backbone)
    trainer.train()
    first, second = rows_of(trainer)
    check_first_update(first)
    check_only_learned_move(before, backbone)
    # The next rollout is of a policy that has left the reference: the zero above says something.
    assert second["kl"] != 0.0
    assert second["ratio"] == 1.0
    assert all(math.isfinite(value) for value in second.values()), second


def test_a_kept_trunk_changes_no_update(family_base: Path, ready: Ready, ppo: PPO) -> None:
    found = []
    for keeps in (True, False):
        backbone = ready(family_base, keeps_trunk=keeps, final_only=True)
        trainer = ppo(backbone, f"trunk-{keeps}", num_ppo_epochs=2, adam_epsilon=1e-3)
        # Without the trunk the head has no weights for it: compare what both have.
        assert (backbone.heads["value"].trunk_weight is not None) == keeps
        trainer.train()
        trained = {
            role: torch.cat([p.detach().flatten() for p in backbone.parameters_of(role)])
            for role in LEARNED
        }
        found.append((rows_of(trainer)[0], trained))
    (kept, kept_weights), (plain, plain_weights) = found
    assert kept.keys() == plain.keys()
    for name, value in plain.items():
        assert kept[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for role in LEARNED:
        torch.testing.assert_close(kept_weights[role], plain_weights[role], rtol=0, atol=1e-6)


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
    family_base: Path, ready: Ready, ppo: PPO, tmp_path: Path
) -> None:
    trained = ready(family_base)
    ppo(trained, learning_rate=0.1).train()  # far enough for the policy to differ from its copy
    said = sayings(trained)
    assert said["policy"] != said["reference"]
    for role in roles.ROLES:
        trained.save(role, tmp_path / role)
    fresh = Backbone.load(
        str(family_base), bits=16, compute_dtype="float32", adapter_layers=2, lora_rank=4, seed=9
    )
    for role in FROZEN + LEARNED:
        fresh.load_role(role, tmp_path / role)
    assert sayings(fresh) == said
    for role in roles.ROLES:
        assert torch.equal(weights(fresh, role), weights(trained, role)), role


def test_a_resumed_run_is_the_run_that_was_not_stopped(
    family_base: Path, ready: Ready, ppo: PPO
) -> None:
    settings: dict[str, Any] = {"num_ppo_epochs": 2, "num_minibatches": 2}
    whole, rest = ready(family_base), ready(family_base)
    straight = ppo(whole, "whole", updates=3, **settings)
    straight.train()
    ppo(ready(family_base), "parts", updates=2, **settings).train()
    torch.rand(5)  # the process's random state is another one now
    resumed = ppo(rest, "parts", updates=3, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert [row["step"] for row in rows_of(resumed)] == [1, 2, 3]
    assert rows_of(resumed) == rows_of(straight)
    for role in roles.ROLES:
        assert torch.equal(weights(rest, role), weights(whole, role)), role


# ---- a family whose layers can't be kept apart


def test_an_unknown_family_says_so_and_runs_the_plain_forward(
    make_base: Callable[..., Path], ready: Ready, ppo: PPO
) -> None:
    lines: list[str] = []
    # Its final norm has another name. Dropout of its own must stay out of PPO, too.
    folder = make_base(family="gpt_neox", hidden_dropout=0.2, attention_dropout=0.2)
    backbone = ready(folder, say=lines.append)
    assert not backbone.keeps_trunk
    assert any("can't be kept apart" in line and str(folder) in line for line in lines)
    trainer = ppo(backbone)
    before = everything(backbone)
    metrics = trainer.update()
    check_first_update(metrics)
    check_only_learned_move(before, backbone)
    assert backbone.heads["value"].trunk_weight is None


# ---- every precision


@pytest.mark.parametrize("compute_dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_every_precision_starts_at_ratio_1(
    tiny_base: Path, ready: Ready, ppo: PPO, bits: int, compute_dtype: str
) -> None:
    backbone = ready(tiny_base, bits=bits, compute_dtype=compute_dtype)
    assert (backbone.bits, backbone.compute_dtype) == (bits, getattr(torch, compute_dtype))
    assert backbone.keeps_trunk
    trainer = ppo(backbone)
    before = everything(backbone)
    check_first_update(trainer.update())
    check_only_learned_move(before, backbone)
    for role in roles.ROLES:
        assert {weight.dtype for weight in backbone.parameters_of(role)} == {torch.float32}, role
    for role in roles.HEADED:
        assert backbone.heads[role].whole_weight.dtype == torch.float32


# ---- dropout and checkpointing


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_dropout_of_the_adapters_is_off_in_ppo(
    tiny_base: Path, ready: Ready, ppo: PPO, gradient_checkpointing: bool
) -> None:
    """Also where layers are put in train mode, which they must be to recompute activations."""
    found = []
    for dropout in (0.0, 0.5):
        backbone = ready(tiny_base, lora_dropout=dropout)
        rates = {m.p for m in backbone.model.modules() if isinstance(m, nn.Dropout)}
        assert rates == ({dropout} if dropout else set())
        settings = {"updates": 2, "gradient_checkpointing": gradient_checkpointing}
        trainer = ppo(backbone, f"dropout-{dropout}", **settings)
        trainer.train()
        check_first_update(rows_of(trainer)[0])
        found.append(rows_of(trainer))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("family", "bits", "compute_dtype"),
    [("llama", 16, "float32"), ("gemma2", 16, "float32"), ("llama", 4, "bfloat16")],
)
def test_gradient_checkpointing_changes_no_weight(
    make_base: Callable[..., Path],
    ready: Ready,
    ppo: PPO,
    family: str,
    bits: int,
    compute_dtype: str,
) -> None:
    folder = make_base(family=family, **(FAMILIES[family] | TIED.get(family, {})))
    found, passes = [], []
    for checkpointing in (False, True):
        backbone = ready(folder, bits=bits, compute_dtype=compute_dtype)
        trainer = ppo(backbone, f"on-{checkpointing}", gradient_checkpointing=checkpointing)
        ran: list[int] = []
        top = backbone.decoder.layers[-1]
        top.mlp.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        trainer.train()
        passes.append(len(ran))
        found.append({role: weights(backbone, role) for role in LEARNED})
    assert passes[1] > passes[0]  # layers did run again in the backward
    for role in LEARNED:
        torch.testing.assert_close(found[1][role], found[0][role], rtol=0, atol=1e-6)
