"""PPO's mathematics against numbers of TRL 1.12's own code (`golden/make_trl_ppo.py`).

Where TRL is right, ours is equal to 1e-6. Where it is not, ours differs exactly as
docs/ppo-details.md says, and the test shows both sides.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lorarlhf.ppo import objective

GOLDEN = json.loads((Path(__file__).parent / "golden" / "trl_ppo.json").read_text("utf-8"))
SETTINGS: dict[str, float] = GOLDEN["settings"]
GIVEN = {name: torch.tensor(values) for name, values in GOLDEN["inputs"].items()}
LENGTHS = GIVEN["lengths"]
MASK = torch.arange(GIVEN["values"].shape[1]) < LENGTHS[:, None]
FULL = [0, 1]  # answers without padding
EXACT = {"rtol": 0.0, "atol": 1e-6}


def trl(name: str) -> Any:
    found = GOLDEN["trl"][name]
    return found if isinstance(found, dict) else torch.tensor(found)


def rewards() -> torch.Tensor:
    return objective.shape_rewards(
        GIVEN["scores"], GIVEN["logprobs"], GIVEN["ref_logprobs"], MASK, SETTINGS["kl_coef"]
    )


def gae(shaped: torch.Tensor, values: torch.Tensor, mask: torch.Tensor) -> Any:
    return objective.gae(shaped, values, mask, SETTINGS["gamma"], SETTINGS["lam"])


def losses(rows: list[int], mask: torch.Tensor = MASK) -> dict[str, float]:
    """Our losses on TRL's advantages and returns, as means over the tokens of these rows."""
    valid, count = mask[rows], mask[rows].sum()
    policy, _ = objective.policy_loss(
        GIVEN["new_logprobs"][rows][valid],
        GIVEN["logprobs"][rows][valid],
        trl("whitened")[rows][valid],
        SETTINGS["cliprange"],
    )
    value, clipped = objective.value_loss(
        GIVEN["vpred"][rows][valid],
        GIVEN["values"][rows][valid],
        trl("returns")[rows][valid],
        SETTINGS["cliprange_value"],
    )
    parts = {"pg_loss": policy, "vf_loss": value, "vf_clipfrac": clipped}
    return {name: (part / count).item() for name, part in parts.items()}


def test_logprobs_are_equal() -> None:
    logits = GIVEN["logits"].flatten(0, 1)
    ours, _ = objective.token_logprobs(
        logits, torch.eye(logits.shape[1]), GIVEN["responses"].flatten(), SETTINGS["temperature"]
    )
    # TRL adds 1e-7 to the temperature.
    torch.testing.assert_close(ours, trl("token_logprobs").flatten(), rtol=1e-6, atol=2e-6)


def test_masked_mean_is_equal() -> None:
    assert objective.masked_mean(GIVEN["values"], MASK).item() == pytest.approx(
        trl("masked_mean").item(), abs=1e-6
    )


def test_rewards_are_equal_but_for_the_place_of_the_score() -> None:
    ours, theirs = rewards(), trl("rewards")
    torch.testing.assert_close(ours[FULL], theirs[FULL], **EXACT)
    for row, length in enumerate(LENGTHS.tolist()):
        if row in FULL:
            continue
        # Theirs is on the first padding after the answer (trl 3750, 1893), ours on its last token.
        moved = theirs[row].clone()
        moved[length - 1] += moved[length]
        torch.testing.assert_close(ours[row, :length], moved[:length], **EXACT)
        assert theirs[row, length].item() == pytest.approx(GIVEN["scores"][row].item(), abs=1e-6)
        assert not ours[row, length:].any()


def test_advantages_and_returns_are_equal_where_the_score_is_in_the_answer() -> None:
    advantages, returns = gae(rewards(), GIVEN["values"], MASK)
    torch.testing.assert_close(advantages[FULL], trl("advantages")[FULL], **EXACT)
    torch.testing.assert_close(returns[FULL], trl("returns")[FULL], **EXACT)


def test_theirs_discounts_the_score_by_lambda_and_a_padding_s_value() -> None:
    advantages, _ = gae(rewards(), GIVEN["values"], MASK)
    lam = SETTINGS["lam"]
    for row, length in enumerate(LENGTHS.tolist()):
        if row in FULL:
            continue
        last, score = length - 1, GIVEN["scores"][row]
        kl = SETTINGS["kl_coef"] * (GIVEN["logprobs"] - GIVEN["ref_logprobs"])[row, last]
        value, beyond = GIVEN["values"][row, last], GIVEN["values"][row, length]
        assert advantages[row, last].item() == pytest.approx((score - kl - value).item(), abs=1e-5)
        theirs = -kl + beyond - value + lam * (score - beyond)
        assert trl("advantages")[row, last].item() == pytest.approx(theirs.item(), abs=1e-5)


def test_whitening_is_equal_but_for_the_unbiased_variance() -> None:
    ours = objective.whiten(trl("advantages"), MASK)
    count = MASK.sum()
    # Ours has deviation 1 over the tokens that there are; theirs divides by n - 1.
    theirs = trl("whitened") * (count / (count - 1)).sqrt()
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_losses_are_equal_on_answers_without_padding() -> None:
    assert losses(FULL) == pytest.approx(trl("losses_full"), abs=1e-6)


def test_the_policy_loss_is_equal_on_a_whole_minibatch() -> None:
    rows = list(range(len(LENGTHS)))
    assert losses(rows)["pg_loss"] == pytest.approx(trl("losses_all")["pg_loss"], abs=1e-6)


def test_theirs_counts_a_padding_in_the_value_loss() -> None:
    rows = list(range(len(LENGTHS)))
    assert losses(rows)["vf_loss"] != pytest.approx(trl("losses_all")["vf_loss"], abs=1e-3)
    wider = torch.arange(MASK.shape[1]) < LENGTHS[:, None] + 1
    assert losses(rows, wider)["vf_loss"] == pytest.approx(trl("losses_all")["vf_loss"], abs=1e-6)


def test_theirs_weights_micro_batches_equally_whatever_their_tokens() -> None:
    first, second = [0, 1, 2], [3, 4]
    tokens = [int(MASK[rows].sum()) for rows in (first, second)]
    parts = [trl(name)["pg_loss"] for name in ("losses_first", "losses_second")]
    whole = trl("losses_all")["pg_loss"]
    ours = [losses(rows)["pg_loss"] for rows in (first, second)]
    assert ours == pytest.approx(parts, abs=1e-6)
    weighted = sum(n * part for n, part in zip(tokens, ours, strict=True)) / sum(tokens)
    assert losses([*first, *second])["pg_loss"] == pytest.approx(weighted, abs=1e-6)
    assert weighted == pytest.approx(whole, abs=1e-6)
    assert sum(parts) / 2 != pytest.approx(whole, abs=1e-3)
