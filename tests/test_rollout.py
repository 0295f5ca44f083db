"""A rollout: masks from lengths, numbers that no padding changes, rewards on the right tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, completion
from lorarlhf.ppo import objective, rollout
from lorarlhf.ppo.config import PPOConfig
from lorarlhf.ppo.micro_batches import MicroBatch, make_micro_batches, policy_logprobs, token_values
from lorarlhf.ppo.rollout import collect
from lorarlhf.rewards.role import score_answers

PROMPTS = ["Hi", "Name a fish that lives in cold water.", "Why?", "What is a candle made of?"]


@pytest.fixture
def four(tiny: Backbone, randomise: Callable[..., None]) -> Backbone:
    """All roles with random weights, so that every number below differs from every other."""
    for role in ("reference", "reward", "value"):
        tiny.add_role(role)
    for seed, role in enumerate(("policy", "reference", "reward", "value")):
        randomise(tiny, role, seed=seed)
    return tiny


def config(folder: Path, **changes: Any) -> PPOConfig:
    settings = {"rollout_batch_size": 4, "micro_batch_size": 2, "max_new_tokens": 6}
    return PPOConfig(output_dir=str(folder), use_cpu=True, **(settings | changes))


def answers(backbone: Backbone) -> tuple[list[list[int]], list[Completion]]:
    """Prompts and answers of different lengths: ended, cut, only the stop token, one token."""
    stop = backbone.stop_ids[0]
    ids = [[9, 12, 40, stop], [7, 30, 31, 32, 33, 34], [stop], [50]]
    return [backbone.encode(p) for p in PROMPTS], [completion(backbone, i) for i in ids]


# ---- micro-batches


def test_a_micro_batch_by_hand(tiny: Backbone) -> None:
    stop = tiny.stop_ids[0]
    encoded = [[5, 6, 7], [8], [9, 10]]
    completions = [completion(tiny, ids) for ids in ([11, stop], [12, 13, 14], [stop])]
    (micro,) = make_micro_batches(tiny, encoded, completions, size=3)
    assert micro.rows == [2, 1, 0]  # 3, 4 and 5 tokens
    assert micro.pack.input_ids.tolist() == [[9, 10, stop, 8, 12, 13, 14, 5, 6, 7, 11, stop]]
    assert micro.pack.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert micro.predicts.tolist() == [1, 3, 4, 5, 9, 10]
    assert micro.targets.tolist() == [stop, 12, 13, 14, 11, stop]
    said = [
        row[: int(mask.sum())] for row, mask in zip(micro.answers, micro.answer_mask, strict=True)
    ]
    assert [row.tolist() for row in said] == [
        [2],  # the stop token is no part of what is said, unless nothing else is there
        [4, 5, 6],
        [10],
    ]


def test_a_micro_batch_that_shares_its_beginning_by_hand(tiny: Backbone) -> None:
    begin = [40, 41, 42, 43]
    encoded = [begin + own for own in ([5, 6], [5, 7, 8])]
    completions = [completion(tiny, ids) for ids in ([11, 12], [13])]
    (micro,) = make_micro_batches(tiny, encoded, completions, size=2)
    assert (micro.rows, micro.pack.shared) == ([0, 1], 5)
    assert micro.pack.input_ids.tolist() == [[*begin, 5, 6, 11, 12, 7, 8, 13]]
    assert micro.pack.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 5, 6, 7]]
    assert micro.predicts.tolist() == [5, 6, 9]
    assert micro.answers[micro.answer_mask].tolist() == [6, 7, 10]


def test_the_token_that_predicts_is_never_shared(tiny: Backbone) -> None:
    """Equal prompts share all but their last token, equal answers or not."""
    encoded = [[40, 41, 42, 43, 44]] * 2
    completions = [completion(tiny, [11, 12]), completion(tiny, [11, 13])]
    (micro,) = make_micro_batches(tiny, encoded, completions, size=2)
    assert micro.pack.shared == 4
    assert micro.pack.input_ids.tolist() == [[40, 41, 42, 43, 44, 11, 12, 44, 11, 13]]
    assert micro.predicts.tolist() == [4, 5, 7, 8]


def test_micro_batches_hold_sequences_of_like_length(tiny: Backbone) -> None:
    encoded = [[5] * n for n in (9, 1, 8, 2, 10, 3)]
    completions = [completion(tiny, [6, 7]) for _ in encoded]
    micros = make_micro_batches(tiny, encoded, completions, size=2)
    assert [sorted(micro.rows) for micro in micros] == [[1, 3], [2, 5], [0, 4]]
    assert [max(micro.pack.lengths) + micro.pack.shared for micro in micros] == [4, 10, 12]


def test_a_padding_token_inside_an_answer_counts(tiny: Backbone) -> None:
    """Masks come from lengths: a base whose padding is its stop token must still learn to stop."""
    tiny.tokenizer.pad_token = tiny.tokenizer.eos_token
    stop = tiny.stop_ids[0]
    assert tiny.pad_id == stop
    encoded, completions = [[5, stop, 6], [7]], [completion(tiny, [8, stop]) for _ in range(2)]
    (micro,) = make_micro_batches(tiny, encoded, completions, size=2)
    assert micro.pack.lengths == [3, 5]
    assert micro.predicts.tolist() == [0, 1, 5, 6]
    assert micro.targets.tolist() == [8, stop, 8, stop]


# ---- numbers


def losses(
    backbone: Backbone, encoded: list[list[int]], completions: list[Completion], size: int
) -> dict[str, torch.Tensor]:
    """Losses of policy and value over all answers, their gradients, and the scores."""
    micros = make_micro_batches(backbone, encoded, completions, size)
    return losses_of(backbone, micros, len(encoded))


def losses_of(backbone: Backbone, micros: list[MicroBatch], count: int) -> dict[str, torch.Tensor]:
    backbone.model.zero_grad(set_to_none=True)
    totals = {"policy": torch.zeros(()), "value": torch.zeros(())}
    scores = torch.zeros(count)
    for micro in micros:
        with backbone.role("policy", train=True):
            logprobs, _ = policy_logprobs(backbone, micro, temperature=0.9)
            loss = (logprobs * micro.targets.sin()).sum()  # weights that belong to the tokens
            loss.backward()
            totals["policy"] += loss.detach()
        with backbone.role("value", train=True):
            values = token_values(backbone, micro)
            loss = ((values - micro.targets.cos()) ** 2).sum()
            loss.backward()
            totals["value"] += loss.detach()
        with torch.no_grad(), backbone.role("reward"):
            hidden = backbone.forward.packed_hidden(micro.pack, micro.trunk)[micro.answers]
            assert micro.trunk is not None
            head, trunk = backbone.heads["reward"], micro.trunk[micro.answers]
            scores[micro.rows] = head.pool(hidden, micro.answer_mask, trunk)
    grads = {
        f"gradient of {role}": torch.cat(
            [p.grad.flatten() for p in backbone.parameters_of(role) if p.grad is not None]
        )
        for role in totals
    }
    backbone.heads["value"].zero_grad(set_to_none=True)
    return totals | {"scores": scores} | grads


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("begin", [[], [40, 41, 42, 43, 44, 45]], ids=["own", "shared"])
@pytest.mark.parametrize("size", [2, 4])
def test_the_company_of_a_sequence_changes_nothing(
    four: Backbone, size: int, begin: list[int], packs: bool
) -> None:
    encoded, completions = answers(four)
    encoded = [begin + ids for ids in encoded]
    alone = losses(four, encoded, completions, size=1)  # nothing shared, no padding at all
    four.forward.packs = packs
    together = losses(four, encoded, completions, size=size)
    for name, wanted in alone.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-4, atol=1e-4, msg=name)
        assert wanted.abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_are_those_of_the_padded_forward(four: Backbone, checkpointing: bool) -> None:
    """The same losses and gradients by the family's own attention over (B, T)."""
    encoded, completions = answers(four)
    encoded = [[40, 41, 42, 43, 44, *ids] for ids in encoded]
    if checkpointing:
        four.causal.gradient_checkpointing_enable({"use_reentrant": False})
    ours = losses(four, encoded, completions, size=4)
    four.causal.gradient_checkpointing_disable()
    four.forward.packs = False
    padded = losses(four, encoded, completions, size=4)
    for name, wanted in padded.items():
        torch.testing.assert_close(ours[name], wanted, rtol=1e-4, atol=1e-4, msg=name)


def test_logprobs_are_those_of_the_plain_forward(four: Backbone) -> None:
    encoded, completions = answers(four)
    micros = make_micro_batches(four, encoded, completions, size=2)
    with torch.no_grad(), four.role("policy"):
        for micro in micros:
            ours, _ = policy_logprobs(four, micro, temperature=0.8)
            ids, mask = micro.pack.padded(four.pad_id)
            logits = four.model(ids, attention_mask=mask).logits
            wanted = [
                (logits[j, len(encoded[row]) + k - 1] / 0.8).log_softmax(dim=0)[token]
                for j, row in enumerate(micro.rows)
                for k, token in enumerate(completions[row].ids)
            ]
            torch.testing.assert_close(ours, torch.stack(wanted), rtol=1e-4, atol=1e-4)


# ---- a whole rollout


def test_a_rollout_holds_what_each_role_says(four: Backbone, tmp_path: Path) -> None:
    rows = [{"prompt": p, "id": i} for i, p in enumerate(PROMPTS)]
    torch.manual_seed(0)
    with torch.no_grad():
        rolled = collect(four, rows, config(tmp_path), seed=0)
    assert rolled.prompts == rows
    lengths = torch.tensor([len(c.ids) for c in rolled.completions])
    assert torch.equal(rolled.mask.sum(dim=1), lengths)
    for table in (rolled.logprobs, rolled.ref_logprobs, rolled.values, rolled.entropy):
        assert table.shape == rolled.mask.shape
        assert table.dtype == torch.float32
        assert not table[~rolled.mask].any()
        assert table[rolled.mask].all()
    assert (rolled.entropy[rolled.mask] > 0).all()
    assert not torch.equal(rolled.logprobs, rolled.ref_logprobs)
    # row by row, without any padding or kept trunk
    for row, (prompt, answer) in enumerate(zip(PROMPTS, rolled.completions, strict=True)):
        ids = torch.tensor([four.encode(prompt) + answer.ids])
        n = len(answer.ids)
        with torch.no_grad():
            for role, table in (("policy", rolled.logprobs), ("reference", rolled.ref_logprobs)):
                with four.role(role):
                    hidden = four.forward.hidden(ids, torch.ones_like(ids))[0, -n - 1 : -1]
                logprobs, _ = objective.token_logprobs(
                    hidden, four.lm_head.weight, torch.tensor(answer.ids)
                )
                torch.testing.assert_close(table[row, :n], logprobs, rtol=1e-4, atol=1e-4)
            with four.role("value"):
                hidden = four.forward.hidden(ids, torch.ones_like(ids))[0, -n - 1 : -1]
                trunk = four.forward.trunk(ids, torch.ones_like(ids))[0, -n - 1 : -1]
                values = four.heads["value"](hidden, trunk)
                torch.testing.assert_close(rolled.values[row, :n], values, rtol=1e-4, atol=1e-4)


def test_select_gives_the_tokens_of_a_micro_batch_in_the_order_of_its_targets(
    four: Backbone, tmp_path: Path
) -> None:
    rows = [{"prompt": p} for p in PROMPTS]
    rolled = collect(four, rows, config(tmp_path), seed=0)
    table = torch.zeros(rolled.mask.shape)
    for row, answer in enumerate(rolled.completions):
        table[row, : len(answer.ids)] = torch.tensor(answer.ids).float()
    for micro in rolled.micro_batches:
        assert torch.equal(rolled.select(micro, table).long(), micro.targets)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_rollout_is_scored_as_the_texts_are(
    four: Backbone, randomise: Callable[..., None], pooling: str
) -> None:
    """The reward role sees in PPO what it saw in its training: `last` is the stop token."""
    four.add_role("reward", pooling=pooling)
    randomise(four, "reward", seed=8)
    (stop,) = four.stop_ids
    # Another stop token, as many chat models have, which no answer ended in while it was trained.
    four.causal.generation_config.eos_token_id = [stop, stop - 1]
    assert four.stop_ids[0] != stop
    texts = ["A cod.", "I do not know that, sorry", "No", "Wax"]
    ids = [four.tokenizer(text)["input_ids"] for text in texts]
    ended = (True, False, True, False)  # those cut off are scored as if they had ended here
    completions = [completion(four, i + [stop] * e) for i, e in zip(ids, ended, strict=True)]
    encoded = [four.encode(prompt) for prompt in PROMPTS]
    micros = make_micro_batches(four, encoded, completions, size=2)
    ours = rollout.reward_scores(four, rollout.Answers([], completions, [micros]))[0].tolist()
    assert ours == pytest.approx(score_answers(four, PROMPTS, texts), rel=1e-4, abs=1e-5)
    assert len({round(score, 4) for score in ours}) == 4
