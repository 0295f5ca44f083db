"""PPO on answers of 256 tokens by the lambda of the critic and of the actor.

    .venv/bin/python benchmarks/long_answers.py                 # hours on two cores
    .venv/bin/python benchmarks/long_answers.py --seeds 1 --updates 8

The score arrives at the last token. With a lambda of 0.95, 0.6% of it reach a token a hundred
before the end, and the rest has to come from the critic. arXiv 2503.01491 and 2504.05118 train the
critic with a lambda of 1, and let the actor's depend on the length. The reward is a function: how
cheerful the words are on average. Every run has the demo's learning rates and price of KL, and a
critic that begins at zero.
"""

import argparse
import json
import subprocess
import sys
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

from _memory import environment

SETTINGS: dict[str, tuple[float, float]] = {  # of the critic, of the actor
    "0.95 for both": (0.95, 0.95),
    "critic 1, actor 0.95": (1.0, 0.95),
    "critic 1, actor 1 - 1/256": (1.0, 1 - 1 / 256),
    "1 for both": (1.0, 1.0),
}


def main() -> None:
    """Run every setting with every seed, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--answers", type=int, default=16, help="in an update")
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], int(args.one[1]), args)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in args.settings}
    for seed in range(args.seeds):
        for name in args.settings:
            rounds[name].append(in_a_process(name, seed, args))
            print(name, seed, rounds[name][-1], file=sys.stderr, flush=True)
    print(
        "| lambda | score, first to last quarter, by seed | mean gain | KL | explained variance |"
    )
    print("|---|---|---|---|---|")
    for name, rows in rounds.items():
        spans = ", ".join(f"{row['first']:.2f} to {row['last']:.2f}" for row in rows)
        gain = mean(row["last"] - row["first"] for row in rows)
        kl, known = (mean(row[key] for row in rows) for key in ("kl", "explained"))
        print(f"| {name} | {spans} | {gain:+.2f} | {kl:.1f} | {known:.2f} |")


def in_a_process(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(seed)]
    for option in ("updates", "tokens", "answers"):
        command += [f"--{option}", str(getattr(args, option))]
    env = environment(None, args.avx2)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """Train; mean scores of the first and the last quarter of the updates, and the last KL."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    from lorarlhf import Backbone, PPOConfig, PPOTrainer
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts
    from lorarlhf.ppo import objective

    lexicon = SentimentIntensityAnalyzer().lexicon

    def cheerful(completions: list[Any], **columns: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        words = [[word.strip(".,!?;:").lower() for word in text.split()] for text in texts]
        return [10 * sum(lexicon.get(w, 0.0) for w in some) / max(20, len(some)) for some in words]

    critic, actor = SETTINGS[name]
    own = objective.gae

    def gae(rewards: Any, values: Any, mask: Any, gamma: float, lam: float) -> tuple[Any, Any]:
        advantages, _ = own(rewards, values, mask, gamma, actor)
        return advantages, own(rewards, values, mask, gamma, critic)[1]

    objective.gae = gae
    backbone = Backbone.load(seed=seed)
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(bundled("prompts"))]
    with TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            updates=args.updates,
            seed=seed,
            rollout_batch_size=args.answers,
            max_new_tokens=args.tokens,
            temperature=0.7,
            num_minibatches=2,
            learning_rate=5e-4,
            value_learning_rate=5e-4,
            kl_coef=0.1,
            use_cpu=backbone.device.type == "cpu",
            disable_tqdm=True,
        )
        trainer = PPOTrainer(backbone, config, rows, reward_funcs=[cheerful])
        trainer.train()
    log = [row for row in trainer.state.log_history if "score" in row]
    quarter = max(1, len(log) // 4)
    return {
        "first": mean(row["score"] for row in log[:quarter]),
        "last": mean(row["score"] for row in log[-quarter:]),
        "kl": log[-1]["kl"],
        "explained": mean(row["explained_variance"] for row in log[-quarter:]),
        "seconds": sum(row["seconds"] for row in log),
    }


if __name__ == "__main__":
    main()
