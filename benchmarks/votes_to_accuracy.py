"""How well the reward head orders held-out answers, by the number of votes it was fitted on.

Simulated raters with 10% noise vote on the base's answers to the bundled prompts. For each of
ten seeds, 60 prompts are held out and all votes are on the others. The fit is then judged on pairs
of answers to the held-out prompts, by the rater's rule without noise and without near ties.

    python benchmarks/votes_to_accuracy.py --out runs/votes_to_accuracy.json
    python benchmarks/votes_to_accuracy.py --trl 2 --trl-votes 100 --out runs/votes_trl.json

The first run samples 1,360 answers of 48 tokens and keeps their features in the cache folder.
`--quick` uses 80 prompts, 24 tokens and one seed.

There are three kinds of raters: the three that the demo offers (two of them lie along style axes),
four more with an axis of the same meaning, and six with a taste for which there is no axis
(`lorarlhf/rewards/foreign_rules.py`). The columns are:

- axes: the fit with the style axes;
- other_axes: without the axes of this rater's own preference;
- no_axes: without any axes;
- gain: axes minus no_axes, with its 95% interval over seeds;
- no_trunk: with axes on the final states alone, without the trunk's output;
- last_token: a head on the last token;
- longer: "the longer answer wins" (by words);
- trl: with `--trl N`, TRL's RewardTrainer at its usual settings on the same votes, for N seeds
  (see `_reward_trl.py`); then only `axes` and `no_axes` stand beside it.

Near ties: the width is the rater's own, with which it votes, except for rules whose score is
continuous. For `cheerful` it is 0.37, the change that one word of average strength makes to a
neutral text: VADER's words have a mean strength of 1.54, and 1.54 / sqrt(1.54^2 + 15) = 0.37. Below
that, answers differ by less than one word. For `brief` it is 0.03, about five words in thirty.

Before each table: how often the rule ties, how often the longer answer wins otherwise, and the
axis along which pairs differ most as they do in the rule (Pearson's r of the differences).
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from _pools import (
    HELD_OUT,
    MAX_NEW_TOKENS,
    Pool,
    bundled_prompts,
    collect_votes,
    held_out_pairs,
    mean_and_margin,
    pair_accuracy,
    sample_pool,
    split_prompts,
    voted_features,
)

from lorarlhf.backbone.base import Backbone
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.fit import fit_head
from lorarlhf.rewards.foreign_rules import FOREIGN_RULES, NEAR_RULES
from lorarlhf.rewards.raters import RATERS, Rater, Rule

NOISE = 0.1
VOTES = (25, 50, 100, 200, 400)
SEEDS = 10
KINDS = {"offered": RATERS, "with an axis": NEAR_RULES, "without an axis": FOREIGN_RULES}
RULES: dict[str, Rule] = RATERS | NEAR_RULES | FOREIGN_RULES
WIDTHS = {"cheerful": 0.37, "brief": 0.03}
OWN_AXES = {
    "cheerful": (
        "cheerful / gloomy",
        "enthusiastic / neutral",
        "encouraging / critical",
        "happy topic / sad topic",
    ),
    "brief": ("short sentences / long sentences", "direct / roundabout"),
    "plain": ("prose / list", "exclaiming / calm"),
    "formal": ("casual / formal",),
    "examples": ("concrete / vague",),
    "asks_back": ("asking / telling",),
    "certain": ("confident / hedging",),
}
COLUMNS = ("axes", "other_axes", "no_axes", "no_trunk", "last_token", "longer")


def remembering(rule: Rule) -> Rule:
    """The same rule; each answer is scored once."""
    return dataclasses.replace(rule, score=lru_cache(maxsize=None)(rule.score))


def width_of(rule: Rule) -> float:
    """How far the scores of a held-out pair differ at least."""
    return WIDTHS.get(rule.name, rule.tie_width)


def fitted_scores(
    features: np.ndarray, votes: list[tuple[int, int, int]], seen: list[int], axes: Any
) -> np.ndarray:
    """Scores (P, A) of all answers, from a head fitted on the votes."""
    fit = fit_head(
        *voted_features(features, votes),
        [place for place, _, _ in votes],
        background=[features[seen].reshape(-1, features.shape[-1])],
        axes=axes,
    )
    return fit.score(features)


def word_counts(pool: Pool) -> np.ndarray:
    """The number of words of each answer, (P, A)."""
    return np.array([[len(one.text.split()) for one in row] for row in pool.answers], float)


def describe_rule(pool: Pool, rule: Rule, axes: tuple[list[str], np.ndarray]) -> dict[str, Any]:
    """How the rule goes with ties, with length and with the axes, over all pairs of one prompt."""
    names, directions = axes
    pairs = list(itertools.combinations(range(len(pool.answers[0])), 2))
    first, second = (np.array([pair[side] for pair in pairs]) for side in (0, 1))
    truth = np.array([[rule.score(one) for one in row] for row in pool.answers])
    words, along = word_counts(pool), pool.mean.astype(np.float64) @ directions.T
    margins = (truth[:, first] - truth[:, second]).ravel()
    longer = (words[:, first] - words[:, second]).ravel()
    apart = (along[:, first] - along[:, second]).reshape(len(margins), -1)
    tied = np.abs(margins) <= rule.tie_width * (1 + 1e-9)
    won = np.sign(margins[~tied]) * np.sign(longer[~tied])
    r = apart.T @ margins / np.sqrt((apart**2).sum(axis=0) * (margins**2).sum())
    most = int(np.argmax(np.abs(r)))
    return {
        "ties": float(tied.mean()),
        "longer_wins": float((won > 0).mean() + (won == 0).mean() / 2),
        "nearest_axis": names[most],
        "r": float(r[most]),
    }


def measure(
    pool: Pool, rule: Rule, axes: tuple[list[str], np.ndarray], seeds: int, held_out: int
) -> dict[str, Any]:
    """accuracies[votes][column], one number for each seed, and the counts of pairs and votes."""
    names, directions = axes
    own = OWN_AXES.get(rule.name, ())
    others = directions[[axis not in own for axis in names]]
    cells: dict[int, dict[str, list[float]]] = {wanted: {} for wanted in VOTES}
    found: dict[str, Any] = {"accuracies": cells, "votes": [], "pairs": [], "fit_seconds": []}
    for seed in range(seeds):
        votes, seen, pairs = one_split(pool, rule, seed, held_out, max(VOTES))
        found["votes"].append(len(votes))
        found["pairs"].append(len(pairs))
        for wanted in VOTES:
            part = votes[:wanted]
            started = time.perf_counter()
            scores = {"axes": fitted_scores(pool.mean, part, seen, directions)}
            found["fit_seconds"].append(time.perf_counter() - started)
            if own:
                scores["other_axes"] = fitted_scores(pool.mean, part, seen, others)
            scores["no_axes"] = fitted_scores(pool.mean, part, seen, None)
            final = slice(-pool.last.shape[-1], None)
            states = pool.mean[..., final]
            scores["no_trunk"] = fitted_scores(states, part, seen, directions[:, final])
            scores["last_token"] = fitted_scores(pool.last, part, seen, None)
            scores["longer"] = word_counts(pool)
            for column, values in scores.items():
                cells[wanted].setdefault(column, []).append(pair_accuracy(values, pairs))
    return found


def one_split(
    pool: Pool, rule: Rule, seed: int, held_out: int, wanted: int
) -> tuple[list[tuple[int, int, int]], list[int], list[tuple[int, int, int]]]:
    """Votes with noise, the prompts that they are on, and the held-out pairs in the right order."""
    rater = Rater.of(rule, noise=NOISE, seed=seed)
    truth = np.array([[rater.score(one) for one in row] for row in pool.answers])
    seen, unseen = split_prompts(len(pool.prompts), held_out, seed)
    pairs = held_out_pairs(truth, unseen, width_of(rule))
    return collect_votes(pool, rater, seen, wanted), seen, pairs


def measure_trl(
    pool: Pool,
    rule: Rule,
    directions: np.ndarray,
    base: str,
    seeds: int,
    held_out: int,
    counts: list[int],
) -> dict[str, Any]:
    """`measure` for the columns trl, axes and no_axes."""
    from _reward_trl import trained_scores

    cells: dict[int, dict[str, list[float]]] = {wanted: {} for wanted in counts}
    found: dict[str, Any] = {"accuracies": cells, "votes": [], "pairs": [], "trl_seconds": []}
    for seed in range(seeds):
        votes, seen, pairs = one_split(pool, rule, seed, held_out, max(counts))
        found["votes"].append(len(votes))
        found["pairs"].append(len(pairs))
        for wanted in counts:
            part = votes[:wanted]
            started = time.perf_counter()
            scores = {"trl": trained_scores(base, pool, part, pairs, seed)}
            found["trl_seconds"].append(time.perf_counter() - started)
            scores["axes"] = fitted_scores(pool.mean, part, seen, directions)
            scores["no_axes"] = fitted_scores(pool.mean, part, seen, None)
            for column, values in scores.items():
                cells[wanted].setdefault(column, []).append(pair_accuracy(values, pairs))
            line = {column: round(cell[-1], 3) for column, cell in cells[wanted].items()}
            seconds = found["trl_seconds"][-1]
            print(f"  {rule.name} seed {seed}, {wanted} votes: {line}, {seconds:.0f} s", flush=True)
    return found


def cell(values: list[float]) -> str:
    """The mean in percent with half of its 95% interval."""
    mean, margin = mean_and_margin(values)
    return f"{100 * mean:.1f}" + ("" if math.isnan(margin) else f" +-{100 * margin:.1f}")


def gains(cells: dict[str, list[float]]) -> list[float]:
    """What the axes add, seed by seed."""
    return [a - b for a, b in zip(cells["axes"], cells["no_axes"], strict=True)]


def print_table(name: str, result: dict[str, Any]) -> None:
    """Print the means over seeds in percent, each with half of its 95% interval."""
    print(f"\n{name}, {np.mean(result['pairs']):.0f} held-out pairs in each seed")
    if "ties" in result:
        print(
            f"ties: {result['ties']:.0%}; the longer answer wins {result['longer_wins']:.0%} of "
            f"the others; nearest axis: {result['nearest_axis']} (r = {result['r']:+.2f})"
        )
    columns = [
        name for name in ("trl", *COLUMNS) if name in next(iter(result["accuracies"].values()))
    ]
    print(f"{'votes':>6}" + "".join(f"{column:>13}" for column in [*columns, "gain"]))
    for wanted, cells in result["accuracies"].items():
        reached = min(wanted, min(result["votes"]))
        mark = "" if reached == wanted else f"  (one seed has only {reached} votes)"
        texts = [cell(cells[column]) for column in columns] + [cell(gains(cells))]
        print(f"{wanted:>6}" + "".join(f"{text:>13}" for text in texts) + mark, flush=True)


def print_means(results: dict[str, Any]) -> None:
    """Print for each kind of raters the means over all of them."""
    for kind, rules in KINDS.items():
        of_kind = [results[name]["accuracies"] for name in rules if name in results]
        if not of_kind:
            continue
        print(f"\nmean over the raters {kind}: {', '.join(n for n in rules if n in results)}")
        for wanted in of_kind[0]:
            both = {
                column: np.mean([cells[wanted][column] for cells in of_kind], axis=0).tolist()
                for column in ("trl", "axes", "no_axes", "last_token", "longer")
                if column in of_kind[0][wanted]
            }
            texts = [f"{column} {cell(values)}" for column, values in both.items()]
            print(f"{wanted:>6}: " + ", ".join(texts) + f", gain {cell(gains(both))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument(
        "--rater", choices=sorted(RULES), action="append", help="can be given several times"
    )
    parser.add_argument("--max-new-tokens", type=int, default=MAX_NEW_TOKENS)
    parser.add_argument("--temperature", type=float, default=1.0, help="for sampling the answers")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--trl", type=int, default=0, metavar="N", help="seeds for TRL's trainer")
    parser.add_argument("--trl-votes", type=int, nargs="+", default=[100])
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="80 prompts, 24 tokens, one seed")
    args = parser.parse_args()
    prompts, seeds, held_out, tokens = bundled_prompts(), args.seeds, HELD_OUT, args.max_new_tokens
    if args.quick:
        prompts, seeds, held_out, tokens = prompts[:80], 1, 20, 24
    backbone = Backbone.load(args.base)
    axes = style_axes(backbone, log=print)
    pool = sample_pool(backbone, tokens, args.temperature, prompts)
    del backbone  # the fits need the features alone
    settings = {"base": args.base, "temperature": args.temperature, "max_new_tokens": tokens}
    results: dict[str, Any] = {}
    for name in args.rater or RULES:
        rule = remembering(RULES[name])
        if args.trl:
            results[name] = measure_trl(
                pool, rule, axes[1], args.base, args.trl, held_out, args.trl_votes
            )
        else:
            results[name] = describe_rule(pool, rule, axes)
            results[name] |= measure(pool, rule, axes, seeds, held_out)
        print_table(name, results[name])
        if args.out:  # after each rater, so that a run that is stopped keeps its figures
            args.out.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(settings | {"noise": NOISE} | results, indent=1)
            args.out.write_text(text + "\n", encoding="utf-8")
    print_means(results)


if __name__ == "__main__":
    main()
