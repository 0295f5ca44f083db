"""Is what the reward head calls 80% sure right in 80% of the held-out votes?

    python benchmarks/calibration.py --out runs/calibration.json

The pool, the raters and the splits are those of `votes_to_accuracy.py`. A head is fitted on 50, 100
or 200 votes, of which none, a tenth or a quarter are wrong, and predicts every pair of answers to
the held-out prompts that is no tie. Four probabilities are compared:

- point: the sigmoid of the difference of the scores;
- posterior: with the doubt about the weights (MacKay's moderated probability);
- scaled: the sigmoid of the difference times a factor by which held-out votes of the fit are
  predicted best (`best_scale` in `lorarlhf/rewards/priors.py`);
- both: scaled, and with the doubt: this is `Posterior.win_probability`.

The main figures are against held-out *votes of the same rater*, as many of which are wrong.
`rule` judges the same probabilities by the rater's rule without noise: a head that learned from
noisy votes has to be less sure than the rule is right, so there the gap is larger.

ECE is the expected calibration error over ten bins (`lorarlhf/evaluation/calibration.py`), of the
probability that the first answer of a pair wins, for each seed. `chance` is the ECE that
probabilities would have if they were exactly right, with as many pairs: less can't be expected.
The loss is -log of the probability of what was voted, in nats; 0.693 is that of a coin.
"""

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from _pools import (
    HELD_OUT,
    MAX_NEW_TOKENS,
    Pool,
    bundled_prompts,
    collect_votes,
    mean_and_margin,
    sample_pool,
    split_prompts,
    voted_features,
)
from votes_to_accuracy import KINDS, RULES, remembering

from lorarlhf.backbone.base import Backbone
from lorarlhf.evaluation.calibration import calibration_curve, expected_calibration_error
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.posterior import moderated
from lorarlhf.rewards.raters import Rater, Rule
from lorarlhf.rewards.vote_fit import VoteFit

NOISES = (0.0, 0.1, 0.25)
VOTES = (50, 100, 200)
SEEDS = 10
DRAWS = 20
SIDES = ("point", "posterior", "scaled", "both")
Array = np.ndarray


def held_out_votes(pool: Pool, rater: Rater, prompts: list[int]) -> tuple[Array, Array, Array]:
    """Pairs (M, 3) of prompt and two answers that are no tie, and whether the first one wins.

    Returns:
        The pairs; by the rater's votes, with noise (M,); by its rule, without (M,).
    """
    pairs, votes, truths = [], [], []
    for place in prompts:
        for a, b in itertools.combinations(range(len(pool.answers[place])), 2):
            one, other = pool.answers[place][a], pool.answers[place][b]
            truth = rater.judge(one, other)
            if truth:
                pairs.append((place, a, b))
                truths.append(truth > 0)
                votes.append(rater.vote(pool.prompts[place], one, other) > 0)
    return np.array(pairs), np.array(votes, float), np.array(truths, float)


def predicted(
    pool: Pool, votes: list[tuple[int, int, int]], seen: list[int], axes: Array, pairs: Array
) -> dict[str, Array]:
    """The probability (M,) that the first answer of each pair wins, without and with the doubt."""
    fit = VoteFit(axes, pool.mean[seen].reshape(-1, pool.mean.shape[-1]))
    fit.add_all(*voted_features(pool.mean, votes), [place for place, _, _ in votes])
    first, second = voted_features(pool.mean, [tuple(pair) for pair in pairs.tolist()])
    posterior = fit.posterior()
    margins, doubts = posterior.margins(first, second)
    scale, sure = posterior.scale, np.zeros_like(doubts)
    return {
        "point": moderated(margins, sure),
        "posterior": moderated(margins, doubts),
        "scaled": moderated(scale * margins, sure),
        "both": moderated(scale * margins, scale * doubts),
    }


def log_loss(chances: Array, outcomes: Array) -> float:
    """The mean of -log of the probability of what happened, in nats."""
    right = np.where(outcomes > 0.5, chances, 1 - chances)
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def ece_by_chance(chances: Array, seed: int) -> float:
    """The ECE of exactly right probabilities, by chance alone."""
    rng = np.random.default_rng(seed)
    drawn = rng.random((DRAWS, len(chances))) < chances
    errors = [expected_calibration_error(chances, outcomes.astype(float)) for outcomes in drawn]
    return float(np.mean(errors))


def measure(
    pool: Pool, rule: Rule, axes: Array, seeds: int, held_out: int
) -> dict[float, dict[int, dict[str, Any]]]:
    """By noise and votes: figures by name, one for each seed, and all predictions."""
    found: dict[float, dict[int, dict[str, Any]]] = {}
    for noise in NOISES:
        cells: dict[int, dict[str, Any]] = {wanted: {} for wanted in VOTES}
        found[noise] = cells
        for seed in range(seeds):
            rater = Rater.of(rule, noise=noise, seed=seed)
            seen, unseen = split_prompts(len(pool.prompts), held_out, seed)
            votes = collect_votes(pool, rater, seen, max(VOTES))
            pairs, voted, true = held_out_votes(pool, rater, unseen)
            for wanted, figures in cells.items():
                chances = predicted(pool, votes[:wanted], seen, axes, pairs)
                right = (chances["point"] > 0.5) == (voted > 0.5)
                add(figures, "accuracy", float(right.mean()))
                for side in SIDES:
                    mine = chances[side]
                    add(figures, f"{side}_ece", expected_calibration_error(mine, voted))
                    add(figures, f"{side}_chance", ece_by_chance(mine, seed))
                    add(figures, f"{side}_loss", log_loss(mine, voted))
                    add(figures, f"{side}_rule_ece", expected_calibration_error(mine, true))
                    add(figures, f"{side}_rule_loss", log_loss(mine, true))
                    add(figures, f"{side}_all", mine)
                add(figures, "voted_all", voted)
    return found


def add(figures: dict[str, Any], name: str, value: Any) -> None:
    """One more seed's figure."""
    figures.setdefault(name, []).append(value)


def curves(figures: dict[str, Any]) -> dict[str, list[list[float]]]:
    """For each side, rows of count, predicted and observed: all seeds together, and both ends.

    A probability of 30% for one answer is one of 70% for the other, so the curve is of the answer
    that is predicted to win.
    """
    voted = np.concatenate(figures["voted_all"])
    found = {}
    for side in SIDES:
        chances = np.concatenate(figures[f"{side}_all"])
        sure = np.maximum(chances, 1 - chances)
        right = np.where(chances >= 0.5, voted, 1 - voted)
        bins = calibration_curve(sure, right)
        found[side] = [[part.count, part.predicted, part.observed] for part in bins]
    return found


def cell(values: list[float], digits: int = 3) -> str:
    """The mean with half of its 95% interval."""
    mean, margin = mean_and_margin(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(margin) else f"+-{margin:.{digits}f}")


def print_table(title: str, by_noise: dict[float, dict[int, dict[str, Any]]]) -> None:
    """Print the figures of one rater, or the means over several."""
    names = [f"{side}_{what}" for what in ("ece", "chance", "loss") for side in SIDES]
    names += [f"{side}_rule_{what}" for what in ("ece", "loss") for side in SIDES]
    print(f"\n{title}\n noise votes accuracy " + " ".join(f"{name:>19}" for name in names))
    for noise, cells in by_noise.items():
        for wanted, figures in cells.items():
            texts = " ".join(f"{cell(figures[name]):>19}" for name in names)
            accuracy = 100 * np.mean(figures["accuracy"])
            print(f"{noise:>6.0%} {wanted:>5} {accuracy:>7.1f}% {texts}", flush=True)


def mean_over(results: list[dict[float, dict[int, dict[str, Any]]]]) -> Any:
    """The mean over raters of each figure, still one for each seed."""
    return {
        noise: {
            wanted: {
                name: np.mean([one[noise][wanted][name] for one in results], axis=0).tolist()
                for name in results[0][noise][wanted]
                if not name.endswith("_all")
            }
            for wanted in VOTES
        }
        for noise in NOISES
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument(
        "--rater", choices=sorted(RULES), action="append", help="can be given several times"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="80 prompts, 24 tokens, one seed")
    args = parser.parse_args()
    prompts, seeds, held_out, tokens = bundled_prompts(), args.seeds, HELD_OUT, MAX_NEW_TOKENS
    if args.quick:
        prompts, seeds, held_out, tokens = prompts[:80], 1, 20, 24
    backbone = Backbone.load(args.base)
    _, axes = style_axes(backbone, log=print)
    pool = sample_pool(backbone, tokens, 1.0, prompts)
    del backbone  # the fits need the features alone
    results: dict[str, Any] = {}
    written: dict[str, Any] = {}
    for name in args.rater or RULES:
        results[name] = measure(pool, remembering(RULES[name]), axes, seeds, held_out)
        print_table(name, results[name])
        written[name] = {
            str(noise): {
                str(wanted): {n: x for n, x in figures.items() if not n.endswith("_all")}
                | {"curves": curves(figures)}
                for wanted, figures in cells.items()
            }
            for noise, cells in results[name].items()
        }
        if args.out:  # after each rater, so that a run that is stopped keeps its figures
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    for kind, rules in KINDS.items():
        if of_kind := [results[name] for name in rules if name in results]:
            print_table(f"mean over the raters {kind}", mean_over(of_kind))


if __name__ == "__main__":
    main()
