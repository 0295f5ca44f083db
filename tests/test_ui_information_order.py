"""The Rate page asks next what would teach the rater's head the most, if that is set."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lorarlhf.rewards.posterior import Posterior
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf_ui import information_order
from lorarlhf_ui.engine_worker import packed
from lorarlhf_ui.models import AnswerSettings
from tests.pages import FIRST, Bench, FakeEngine
from tests.rate_steps import LEFT, RIGHT, begin, on_screen

pytest_plugins = ("tests.pages",)

WIDTH = 16
OpenBench = Callable[..., Bench]
TRUTH = np.random.default_rng(7).normal(size=WIDTH)


def open_with(open_bench: OpenBench, **settings: Any) -> Bench:
    bench = open_bench(FakeEngine("off"), prefetching=False)
    bench.prefetch.change_settings(AnswerSettings(**settings))
    return bench


def ask(bench: Bench, prompt: str, rows: Any = None, **more: Any) -> int:
    """An item whose answers have these features (K, F); None for no hidden states."""
    texts = [f"{prompt} {n}" for n in range(2 if rows is None else len(rows))]
    if rows is not None:
        bench.states.put(prompt, texts, [packed(np.asarray(row)) for row in rows])
    return bench.store.add_item(prompt, [(text, "base") for text in texts], **more)


def votes(bench: Bench, count: int = 12, rater: str = "ann") -> None:
    """Votes for the answer that is further along one direction."""
    draw = np.random.default_rng(0)
    for place in range(count):
        rows = draw.normal(size=(2, WIDTH))
        ask(bench, f"{rater} {place}?", rows)
        view = begin(bench, rater)
        further = int(rows[1] @ TRUTH > rows[0] @ TRUTH)
        left = on_screen(view)[0].endswith(f" {further}")
        bench.ratings.vote(rater, view["token"], LEFT if left else RIGHT, 900)
        assert bench.meter.wait()


def three(bench: Bench) -> tuple[int, int, int]:
    """Items whose answers are the same, nearly the same, and far apart, in this order."""
    one = np.zeros(WIDTH)
    far = np.random.default_rng(3).normal(size=WIDTH)
    apart = zip(("same?", "near?", "far?"), (0.0, 0.1, 1.0), strict=True)
    same, near, last = (ask(bench, prompt, [one, share * far]) for prompt, share in apart)
    return same, near, last


def asked(bench: Bench, count: int, rater: str = "ann") -> list[str]:
    """The prompts of the next items, all of which are voted on."""
    found = []
    for _ in range(count):
        view = begin(bench, rater)
        found.append(on_screen(view)[0].rsplit(" ", 1)[0])
        bench.ratings.vote(rater, view["token"], LEFT, 900)
        assert bench.meter.wait()
    return found


def test_what_would_teach_the_most_is_asked_first(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    same, near, far = three(bench)
    assert bench.prefetch.order.best_first("ann") == [far, near, same]
    assert asked(bench, 3) == ["far?", "near?", "same?"]


def test_no_vote_waits_while_the_prefetch_thread_reads(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    three(bench)
    view = begin(bench)
    after: list[dict[str, Any]] = []
    with bench.prefetch.store._lock:  # as in a long scan
        thread = threading.Thread(
            target=lambda: after.append(bench.ratings.vote("ann", view["token"], LEFT, 900)),
            daemon=True,
        )
        thread.start()
        thread.join(60)
        assert after and on_screen(after[0])[0].startswith("near?")


def test_by_default_items_are_asked_as_they_were_made(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, repeats=0.0)
    votes(bench)
    three(bench)
    assert bench.prefetch.order.best_first("ann") == []  # nothing is computed for it either
    assert asked(bench, 3) == ["same?", "near?", "far?"]


def test_shared_items_come_before_and_items_without_states_wait_for_nobody(
    open_bench: OpenBench,
) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    same, near, far = three(bench)
    blank = ask(bench, "blank?")
    ask(bench, "shared?", np.ones((2, WIDTH)), shared=True)
    assert bench.prefetch.order.best_first("ann")[:2] == [blank, far]
    assert asked(bench, 5) == ["shared?", "blank?", "far?", "near?", "same?"]


def test_without_votes_the_order_is_that_of_making(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    three(bench)
    assert asked(bench, 1, "bob") == ["same?"]  # ann's votes say nothing of bob's head
    again = open_bench(FakeEngine("off"), prefetching=False)
    assert again.prefetch.order.best_first("ann") == []
    assert asked(again, 1) == ["far?"]  # bob has the one before it open
    ask(again, "more?", np.eye(2, WIDTH))  # the first vote after a restart brings the head back
    assert len(again.prefetch.order.best_first("ann")) == 1


def test_another_base_starts_again(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    three(bench)
    bench.states.use("another base")
    assert bench.prefetch.order.best_first("ann") == []
    compared = bench.store.present(ask(bench, "compared?", purpose="compare"), "ann")
    bench.meter.voted("ann", bench.store.judge(compared.token, FIRST))  # leaves the head as it is
    assert bench.meter.wait() and bench.prefetch.order.best_first("ann") == []


def test_too_few_votes_give_no_order(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench, 4)
    three(bench)
    assert len(bench.prefetch.order.best_first("ann")) == 3
    view = begin(bench)
    bench.ratings.undo("ann", view["last"])
    assert bench.meter.wait() and bench.prefetch.order.best_first("ann") == []


def test_rankings_count_by_their_best_pair(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    same, near, far = three(bench)
    rows = np.zeros((3, WIDTH))
    rows[2] = 2 * np.random.default_rng(3).normal(size=WIDTH)
    ranking = ask(bench, "ranking?", rows)
    assert bench.prefetch.order.best_first("ann") == [ranking, far, near, same]


def test_the_rate_of_repeats_is_that_of_the_settings(open_bench: OpenBench) -> None:
    bench = open_with(open_bench, repeats=0.5)
    for place in range(60):
        ask(bench, f"{place}?")
    asked(bench, 50)
    repeats = bench.store.rows("SELECT count(repeats) FROM presentation")[0][0]
    assert 10 <= repeats <= 30  # half of the 39 votes for which there is one to repeat
    never = open_with(open_bench, repeats=0.0)
    before = never.store.rows("SELECT count(repeats) FROM presentation")[0][0]
    asked(never, 10)
    assert never.store.rows("SELECT count(repeats) FROM presentation")[0][0] == before


def test_the_order_has_the_meters_own_head(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = open_with(open_bench, order="information", repeats=0.0)
    votes(bench)
    made: list[Posterior] = []
    posterior = VoteFit.posterior

    def counted(fit: VoteFit) -> Posterior:
        made.append(posterior(fit))
        return made[-1]

    monkeypatch.setattr(VoteFit, "posterior", counted)
    votes(bench, 1)
    assert len(made) == 1  # it takes half a second where there are many votes
    assert bench.prefetch.order._posteriors["ann"][1] is made[0] is bench.meter._heads["ann"].head


def test_the_posteriors_of_the_latest_raters_are_kept(
    open_bench: OpenBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(information_order, "MOST_RATERS", 2)
    order = open_with(open_bench).prefetch.order
    draw, fit = np.random.default_rng(0), VoteFit()
    for place in range(6):
        fit.add(*draw.normal(size=(2, WIDTH)), place)
    head = fit.posterior()
    for rater in ("ann", "bob", "ann", "cem"):
        order.learn(rater, head)
    ask(open_bench(FakeEngine("off"), prefetching=False), "one?", np.eye(2, WIDTH))
    assert [len(order.best_first(rater)) for rater in ("ann", "bob", "cem")] == [1, 0, 1]
