"""DPO by learning rate, passes, beta and SFT term: its wins, and whether answers fall apart.

    python benchmarks/dpo_defaults.py --out runs/dpo_defaults.json
    python benchmarks/dpo_defaults.py --votes 2000 --rates 5e-4 --epochs 3 --holdout 0.1
    python benchmarks/dpo_defaults.py --method kto --rates 1e-4 5e-4 --epochs 1 3
    python benchmarks/dpo_defaults.py --method orpo --rates 5e-4 --epochs 3 --beta 0.1 1 5

A simulated rater, a tenth of whose votes are wrong, votes on answers of the base to the 280 bundled
prompts. Each setting trains the base's policy on these votes. The policy then answers each of the
60 held-out prompts twice, and each answer is compared with four answers of the base by the rater's
rule without noise.

`repeated` is the share of an answer's runs of four tokens that stood in it before, `ended` the
share of answers that end by themselves. `chosen` and `rejected` are the change of the
log-probability, in nats a token, of the better and the worse of two held-out answers by the rule.
`margin` is the last one in the training, `kept` the optimizer step whose weights are kept, and
`alarms` are those of the run.

The answers of the base are sampled once and kept in the cache folder (`_pools.py`). A pass over 150
votes takes two minutes on 2 free cores.
"""

import argparse
import itertools
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _pools import MAX_NEW_TOKENS, Pool, bundled_prompts, collect_votes, sample_pool
from best_of_n import Answers, compare
from votes_to_accuracy import remembering

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, generate
from lorarlhf.rewards.raters import RATERS, Answer, Rater
from lorarlhf.rewards.role import encode_answer
from lorarlhf.runtime.run import Run
from lorarlhf.stages.dpo_orpo import DirectSettings, DPOSettings, ORPOSettings, train_direct
from lorarlhf.stages.kto import KTOSettings, train_kto
from lorarlhf.stages.preference_watch import likelihoods, sample_figures

HELD_OUT, NOISE = 60, 0.1
KINDS: dict[str, Any] = {"dpo": DPOSettings, "orpo": ORPOSettings, "kto": KTOSettings}
OWN = ("sft_weight", "noise")  # settings of DPO alone
Settings = DirectSettings | KTOSettings
Row = dict[str, Any]


def voted_rows(pool: Pool, rater: Rater, prompts: list[int], wanted: int) -> list[Row]:
    """Preference pairs; fewer than wanted if the pool has no more that are no ties."""
    return [
        {
            "prompt": pool.prompts[place],
            "chosen": pool.answers[place][good].text,
            "rejected": pool.answers[place][bad].text,
        }
        for place, good, bad in collect_votes(pool, rater, prompts, wanted)
    ]


class Bench:
    """What all settings share: the base, its answers, and the held-out pairs."""

    def __init__(
        self, base: str, name: str, prompts: list[Any], held_out: int, tokens: int
    ) -> None:
        self.backbone, self.tokens = Backbone.load(base), tokens
        self.pool = sample_pool(self.backbone, tokens, 1.0, prompts)
        self.seen = list(range(len(prompts) - held_out))
        self.unseen = list(range(len(prompts) - held_out, len(prompts)))
        self.name, self.rule = name, Rater.of(remembering(RATERS[name]), noise=0.0, seed=0)
        self.start = [p.detach().clone() for p in self.backbone.parameters_of("policy")]
        pairs = voted_rows(self.pool, self.rule, self.unseen, len(self.unseen))
        self.good, self.bad = (
            [encode_answer(self.backbone, row["prompt"], row[side], "last") for row in pairs]
            for side in ("chosen", "rejected")
        )
        self.before = likelihoods(self.backbone, self.good, self.bad)

    def votes(self, wanted: int, seed: int) -> list[Row]:
        """Votes with noise on the training prompts."""
        rater = Rater.of(remembering(RATERS[self.name]), noise=NOISE, seed=seed)
        return voted_rows(self.pool, rater, self.seen, wanted)

    def base_answers(self) -> Answers:
        """The base's own answers to the held-out prompts."""
        return [self.pool.answers[place] for place in self.unseen]

    def train(self, method: str, rows: list[Row], settings: Settings, seed: int) -> Row:
        """The figures of a policy that is trained from the base on."""
        own = self.backbone.parameters_of("policy")
        for weight, first in zip(own, self.start, strict=True):
            weight.data.copy_(first)
        with TemporaryDirectory() as folder:
            run = Run(folder, method, {"seed": seed})
            if isinstance(settings, KTOSettings):
                found = train_kto(self.backbone, rows, run, settings)
            else:
                found = train_direct(self.backbone, rows, run, method, settings)
            lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        log = [json.loads(line) for line in lines]
        margins = [row["rewards/margins"] for row in log if "rewards/margins" in row]
        raised = sorted({row["alarm"] for row in log if "alarm" in row})
        kept = found.get("kept_step", found["steps"])
        return self.measure() | {"margin": margins[-1], "kept": kept, "alarms": raised}

    def measure(self) -> Row:
        """Win rate, repetition, length, ends, and the change of the likelihoods, of the policy."""
        prompts = [self.pool.prompts[place] for place in self.unseen]
        completions: list[list[Completion]] = [
            generate(self.backbone, prompts, max_new_tokens=self.tokens, batch_size=64, seed=seed)
            for seed in (100, 101)
        ]
        ours = [[Answer.of(one) for one in row] for row in zip(*completions, strict=True)]
        now = likelihoods(self.backbone, self.good, self.bad)
        changes = {name.removesuffix("_logp"): now[name] - self.before[name] for name in now}
        figures = sample_figures(list(itertools.chain(*completions)))
        return {"win_rate": compare(self.rule, ours, self.base_answers())} | figures | changes


HEAD = (
    "| rate | passes | beta | SFT term | noise | held out | wins (95%) | repeated | ended | tokens "
    "| chosen | rejected | margin | kept | alarms |\n" + "|---" * 15 + "|"
)


def table_row(settings: Settings | None, found: Row) -> str:
    """One line of the table; without settings that of the base."""
    cells = ["the base", *[""] * 5]
    if settings is not None:
        made = [settings.learning_rate, settings.epochs, settings.beta]
        made += [getattr(settings, name, 0.0) for name in OWN]
        cells = [f"{value:g}" for value in (*made, settings.holdout)]
    won = found["win_rate"]
    low, high = won["ci95"]
    cells += [f"{won['rate']:.0%} ({low:.0%} to {high:.0%})", f"{found['repetition']:.1%}"]
    cells += [f"{found['ended_fraction']:.0%}", f"{found['completion_length']:.1f}"]
    cells += [f"{found[name]:+.2f}" if name in found else "" for name in ("chosen", "rejected")]
    cells += [f"{found['margin']:.1f}" if "margin" in found else "", str(found.get("kept", ""))]
    return f"| {' | '.join(cells)} | {', '.join(found.get('alarms', []))} |"


def combinations(args: argparse.Namespace) -> list[Settings]:
    """All settings that the options name; the SFT term and the noise are DPO's alone."""
    found: list[Settings] = []
    own = itertools.product(args.sft, args.noise) if args.method == "dpo" else [()]
    for epochs, rate, beta, more, holdout in itertools.product(
        args.epochs, args.rates, args.beta or [KINDS[args.method].beta], list(own), args.holdout
    ):
        found.append(
            KINDS[args.method](
                epochs=epochs,
                learning_rate=rate,
                beta=beta,
                holdout=holdout,
                evaluations=4 if holdout else 1,  # for the alarms the start and the end are enough
                **dict(zip(OWN, more, strict=False)),
            )
        )
    return found


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="smollm2-135m", help="name, folder or id of a base")
    parser.add_argument("--method", choices=list(KINDS), default="dpo")
    parser.add_argument("--rater", choices=sorted(RATERS), default="cheerful")
    parser.add_argument("--votes", type=int, default=150, help="as far as there are so many")
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-4, 5e-4, 1e-3])
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0, 3.0], help="passes")
    parser.add_argument("--beta", type=float, nargs="+", help="default: the method's own")
    parser.add_argument("--sft", type=float, nargs="+", default=[0.0, 0.2, 1.0], help="sft_weight")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0], help="robust loss above 0")
    parser.add_argument("--holdout", type=float, nargs="+", default=[0.0])
    parser.add_argument("--seed", type=int, default=0, help="of the votes and of the training")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--quick", action="store_true", help="40 prompts, 12 tokens, 16 votes")
    return parser


def main() -> None:
    """Print a Markdown table."""
    args = options().parse_args()
    prompts, held_out, tokens, wanted = bundled_prompts(), HELD_OUT, MAX_NEW_TOKENS, args.votes
    if args.quick:
        prompts, held_out, tokens, wanted = prompts[:40], 8, 12, 16
    bench = Bench(args.base, args.rater, prompts, held_out, tokens)
    rows = bench.votes(wanted, args.seed)
    title = f"{args.method}: {len(rows)} votes by {args.rater}, seed {args.seed}"
    print(f"{title}\n\n{HEAD}", flush=True)
    found = [{"settings": None} | bench.measure()]
    print(table_row(None, found[0]), flush=True)
    for settings in combinations(args):
        figures = bench.train(args.method, rows, settings, args.seed)
        found.append({"settings": vars(settings)} | figures)
        print(table_row(settings, figures), flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
