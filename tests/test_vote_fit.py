"""`VoteFit`: votes that are kept, added to, split and saved, and the fits to them."""

import time
from pathlib import Path

import numpy as np
import pytest

from lorarlhf.rewards import vote_fit
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime.errors import UserError
from tests.planted import planted_rows


def voted(votes: int, width: int, **given: np.ndarray) -> VoteFit:
    kept = VoteFit(**given)
    chosen, rejected = planted_rows(4, votes, np.random.default_rng(4).normal(size=width))
    for place in range(votes):
        kept.add(chosen[place], rejected[place], f"prompt {place}")
    return kept


def test_saved_votes_give_the_same_fit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    votes = voted(25, 12, axes=rng.normal(size=(3, 12)), background=rng.normal(size=(9, 12)))
    before = votes.fit()
    votes.save(tmp_path / "votes.safetensors")
    again = VoteFit.load(tmp_path / "votes.safetensors")
    assert len(again) == 25 and again.groups == votes.groups
    np.testing.assert_array_equal(again.fit().weight, before.weight)
    assert again.fit().blend == before.blend
    VoteFit().save(tmp_path / "none.safetensors")
    assert len(VoteFit.load(tmp_path / "none.safetensors")) == 0


def test_a_subset_is_fitted_to_its_votes_alone() -> None:
    votes = voted(30, 5)
    part = votes.subset(range(10, 20))
    alone = voted(0, 5)
    for place in range(10, 20):
        alone.add(votes.chosen[place], votes.rejected[place], votes.groups[place])
    np.testing.assert_array_equal(part.fit().weight, alone.fit().weight)
    assert len(votes) == 30 and not np.array_equal(votes.fit().weight, part.fit().weight)


def test_a_large_subset_keeps_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vote_fit, "MANY", 20)
    votes = voted(60, 5)
    whole = votes.fit()
    assert votes.subset(range(30)).fit().blend is whole.blend
    assert votes.subset(range(19)).fit().blend != whole.blend


def test_votes_can_be_added_to_many() -> None:
    chosen, rejected = planted_rows(2, 40, np.ones(5))
    one, by_one = VoteFit(), VoteFit()
    one.add_all(chosen[:30].astype(np.float32), rejected[:30].astype(np.float32), range(30))
    one.add_all(chosen[30:].astype(np.float32), rejected[30:].astype(np.float32), range(30, 40))
    for place in range(40):
        by_one.add(chosen[place], rejected[place], place)
    np.testing.assert_array_equal(one.fit().weight, by_one.fit().weight)
    np.testing.assert_array_equal(one.chosen, chosen.astype(np.float32))
    with pytest.raises(ValueError, match="two rows each"):
        VoteFit().add_all(one.chosen, one.rejected[:3], range(40))


def test_unreadable_votes_are_a_clear_error(tmp_path: Path) -> None:
    broken = tmp_path / "votes.safetensors"
    broken.write_bytes(b"not a safetensors file at all")
    for path in (broken, tmp_path / "missing.safetensors"):
        with pytest.raises(UserError, match="can't be read"):
            VoteFit.load(path)


def test_another_vote_is_fitted_in_milliseconds() -> None:
    votes = voted(200, 576, axes=np.random.default_rng(1).normal(size=(20, 576)))
    started = time.perf_counter()
    weighted = votes.fit()
    assert time.perf_counter() - started < 2  # with the priors weighted by cross-validation
    times = []
    for extra in range(5):
        votes.add(np.ones(576), np.zeros(576), f"one more {extra}")
        started = time.perf_counter()
        fit = votes.fit()
        times.append(time.perf_counter() - started)
    assert fit.blend is weighted.blend
    assert min(times) < 0.15  # some 20 ms on one core; room for a busy machine
