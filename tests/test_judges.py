"""The judges of `eval` and the figures of candidates, by hand."""

import json
from typing import Any

import pytest
from rated_votes import FIRST, SECOND, vote

from lorarlhf.evaluation.candidates import Candidate, distinct
from lorarlhf.evaluation.eval_results import (
    NO_JUDGE,
    answer_rows,
    as_text,
    better_and_worse,
    results,
)
from lorarlhf.evaluation.judges import (
    Comparisons,
    Verdicts,
    between,
    by_people,
    by_rater,
    by_scores,
    compare_scores,
    compared,
    function_scores,
)
from lorarlhf.preferences.records import SKIP, TIE, Verdict
from lorarlhf.rewards.raters import Answer
from lorarlhf.runtime.errors import UserError

STOP = 0


def candidate(name: str, *texts: str, kl: list[float] | None = None, **more: Any) -> Candidate:
    answers = [Answer(text, ended=True, tokens=len(text.split()) + 1) for text in texts]
    ids = [[*map(hash, text.split()), STOP] for text in texts]
    return Candidate(name, answers, ids, kl=kl or [], **more)


BASE = candidate("base", "no", "two words", "a b c", kl=[0.0, 0.0, 0.0])
LONGER = candidate("long", "no no", "two words", "a", kl=[1.0, 2.0, 6.0])


def test_distinct_n_by_hand() -> None:
    # a b a b: the unigrams a and b, the bigrams ab and ba, of 4 tokens.
    assert distinct([["a", "b", "a", "b"]], 1) == 0.5
    assert distinct([["a", "b", "a", "b"]], 2) == 0.5
    assert distinct([["a", "b"], ["a", "c"]], 2) == 0.5  # no bigram from one text to the next
    assert distinct([[], []], 1) is None and distinct([["a"]], 2) == 0.0


def test_figures_of_a_candidate() -> None:
    found = LONGER.figures()
    assert found["kl"] == 3.0 and found["kl_se"] == pytest.approx((7 / 3) ** 0.5)  # variance 7
    assert found["length"] == pytest.approx((3 + 3 + 2) / 3) and found["ended"] == 1.0
    unknown = candidate("best of 4", "a", kl_bound=0.64).figures()
    assert (unknown["kl"], unknown["kl_se"], unknown["kl_bound"]) == (None, None, 0.64)


def test_the_stop_token_is_no_repetition() -> None:
    found = candidate("x", "a b", "a c").figures()
    assert (found["distinct_1"], found["distinct_2"]) == (3 / 4, 2 / 4)
    cut = Candidate("x", [Answer("a b", ended=False, tokens=2)], [[1, 2]])
    assert cut.figures()["distinct_1"] == 1.0


def test_a_rater_compares_by_its_rule_and_keeps_ties() -> None:
    found = by_rater("brief", [LONGER], BASE, [0, 1, 2])
    assert found.comparisons["long"].outcomes == [-1, 0, 1]
    assert found.scores["base"] != found.scores["long"] and found.independent
    with pytest.raises(UserError, match="no rater named"):
        by_rater("brisk", [LONGER], BASE, [0, 1, 2])


def test_scores_compare_by_sign_and_none_is_no_opinion() -> None:
    assert compare_scores([1.0, 2.0, None, 3.0], [2.0, 2.0, 1.0, 0.5]) == [-1, 0, None, 1]
    given = {"base": [0.0, 1.0, None], "long": [1.0, 1.0, 5.0]}
    found = by_scores("mine", lambda one: given[one.name], [LONGER], BASE, [0, 1, 2], note="so")
    assert found.comparisons["long"].outcomes == [1, 0, None]
    assert found.scores == {"base": 0.5, "long": pytest.approx(7 / 3)} and found.note == "so"
    figures = compared(found.comparisons["long"], seed=0)
    assert figures is not None and (figures["n"], figures["wins"], figures["ties"]) == (2, 1, 1)
    nothing = Comparisons([None], [1.0], [1.0], [0])
    assert compared(nothing, seed=0) is None


def test_a_function_gets_what_a_reward_function_gets() -> None:
    seen: dict[str, Any] = {}

    def judge(prompts: list, completions: list, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [float(len(prompts))] * len(prompts)

    rows = [{"prompt": "a", "kind": "x"}, {"prompt": [{"role": "user", "content": "b"}]}]
    one = candidate("one", "first", "second")
    assert function_scores(judge, rows, one) == [2.0, 2.0]
    assert seen["completions"] == ["first", [{"role": "assistant", "content": "second"}]]
    assert seen["kind"] == ["x", None] and seen["ended"] == [True, True]
    # In training they come from the sampler, which keeps the stop token of an answer that ended.
    assert seen["completion_ids"] == [[hash("first"), STOP], [hash("second"), STOP]]


def test_votes_of_people_on_both_sides() -> None:
    ours, named = ["base", "runs/0003-ppo"], {"runs/0003-ppo": "ppo"}
    votes = [
        vote(1, FIRST, sources=ours),  # the base's answer won
        vote(2, FIRST, sources=ours[::-1]),
        vote(3, Verdict(TIE), sources=ours, prompt="How?"),
        vote(4, Verdict(SKIP), sources=ours),
        vote(5, SECOND, sources=["runs/0003-ppo", "runs/0004-dpo"]),  # the base takes no part
        vote(6, SECOND, sources=["base", "base"]),
    ]
    found = by_people(votes, named)
    assert found is not None and list(found.comparisons) == ["ppo"]
    one = found.comparisons["ppo"]
    assert one.outcomes == [-1, 1, 0]
    assert one.lengths == [3.0, 2.0, 3.0] and one.base_lengths == [2.0, 3.0, 2.0]
    assert one.groups == ["Why?", "Why?", "How?"]
    assert by_people(votes[3:], named) is None


def test_figures_agree_with_the_outcomes() -> None:
    one = Comparisons([1, 1, 0, -1], [5.0, 9.0, 5.0, 2.0], [5.0, 3.0, 5.0, 2.0], [0, 1, 2, 3])
    found = compared(one, seed=0)
    assert found is not None and found["rate"] == 0.625
    assert found["similar_length"]["n"] == 3 and found["similar_length"]["rate"] == 0.5
    assert found["longer_wins"] == 0.625  # one longer, three equal
    assert found["ci95"][0] <= found["length_controlled"]["rate"] <= found["ci95"][1]


def test_the_table_and_the_rows() -> None:
    best = candidate("best of 4", "x", "two words", "a", kl_bound=0.636)
    verdicts = [by_rater("brief", [LONGER, best], BASE, [0, 1, 2])]
    verdicts.append(
        by_scores(
            "reward of r",
            lambda one: [float(len(answer.text)) for answer in one.answers],
            [LONGER, best],
            BASE,
            [0, 1, 2],
            independent=False,
            note="best of 4 was made with it",
        )
    )
    data = json.loads(json.dumps(results(BASE, [LONGER, best], verdicts, seed=0)))
    text = as_text(data)
    assert "at most 0.64" in text and "reward of r: not independent: best of 4 was made" in text
    assert [one["name"] for one in data["candidates"]] == ["base", "long", "best of 4"]
    assert "No difference to the base that is larger than chance." in text
    head, *figures = text.split("\n")[:4]
    assert head.startswith("candidate  KL (nats)  ")
    starts = [line[: head.index("KL")].rstrip() for line in figures]
    assert starts == ["base", "long", "best of 4"]  # one column under another
    rows = answer_rows(["a", "b", "c"], BASE, [LONGER, best], verdicts)
    assert rows[0]["answers"] == {"base": "no", "long": "no no", "best of 4": "x"}
    assert rows[0]["verdicts"]["rater brief"] == {"long": -1, "best of 4": 0}
    alone = as_text(results(BASE, [LONGER], [], seed=0))
    assert alone.endswith(NO_JUDGE)


def test_what_is_beyond_chance_is_said() -> None:
    def judged(low: float, high: float, name: str) -> dict[str, Any]:
        return {"candidate": name, "ci95": [low, high]}

    gap = {"candidate": "b", "other": "a", "difference": -0.25, "ci95": [-0.4, -0.125]}
    unsure = gap | {"ci95": [-0.4, 0.1]}
    results = [judged(0.6, 0.8, "a"), judged(0.1, 0.4, "b")]
    judge = {"judge": "j", "independent": True, "results": results, "between": [gap, unsure]}
    assert better_and_worse([judge]) == [
        "Better than the base, beyond chance: a (j).",
        "Worse than the base, beyond chance: b (j).",
        "a wins 25 points (12 to 40) more often than b (j).",
    ]
    doubtful = judge | {"judge": "reward of r", "independent": False}
    line = (
        "By a judge that is not independent: better than the base: a (reward of r); worse than the "
        "base: b (reward of r); a wins 25 points (12 to 40) more often than b (reward of r)."
    )
    nobody = "No independent judge has compared these answers with the base's."
    assert better_and_worse([doubtful]) == [nobody, line]
    unclear = judge | {"results": [judged(0.4, 0.6, "a")], "between": [unsure]}
    no_difference = "No difference to the base that is larger than chance."
    assert better_and_worse([unclear, doubtful]) == [no_difference, line]
    assert better_and_worse([unclear, unclear | {"independent": False}]) == [no_difference]


def test_candidates_are_compared_with_each_other_on_the_same_prompts() -> None:
    """One wins where the other loses: twice as far apart as each is from the base."""
    outcomes = {"up": [1, 1, 1, None, 0] * 8, "down": [-1, -1, 0, 1, 0] * 8}
    found = Verdicts(
        "j",
        {
            name: Comparisons(values, [1.0] * 40, [1.0] * 40, [*range(40)])
            for name, values in outcomes.items()
        },
    )
    (row,) = between(found, seed=0)
    assert (row["candidate"], row["other"]) == ("up", "down")
    assert row["difference"] == pytest.approx((2 + 2 + 1 + 0) / 2 / 4)
    low, high = row["ci95"]
    # Four values of 1, 1, 1/2 and 0, eight times each: a deviation of 0.41 over 32 prompts.
    assert high - low == pytest.approx(2 * 1.96 * 0.4146 / 32**0.5, rel=0.1)
    assert low < row["difference"] < high
    people = Verdicts("people", found.comparisons)
    assert between(people, seed=0) == []
