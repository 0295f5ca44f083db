"""Seconds and peak memory of one PPO update: 16 prompts, 32 new tokens, 4 epochs, small base.

    .venv/bin/python benchmarks/ppo_update.py --updates 5

The reward is a random reward role, so that all four roles take part as in a real run.
"""

import argparse
import json
from statistics import median
from tempfile import TemporaryDirectory

from lorarlhf import Backbone, PPOConfig, PPOTrainer
from lorarlhf.data import as_conversation, bundled, read_prompts
from lorarlhf.runs import peak_rss_mb


def main() -> None:
    """Run a few updates and print the median of each phase as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--adapter-layers", default="upper-half")
    args = parser.parse_args()
    backbone = Backbone.load(adapter_layers=args.adapter_layers)
    loaded = peak_rss_mb()
    backbone.add_role("reward")
    backbone.heads["reward"].weight.data.normal_(0, 0.02)
    rows = [{"prompt": as_conversation(r["prompt"])} for r in read_prompts(bundled("prompts"))]
    with TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            updates=args.updates + 1,
            rollout_batch_size=16,
            max_new_tokens=32,
            num_ppo_epochs=4,
            micro_batch_size=args.micro_batch_size,
            critic_warmup=0,
            use_cpu=backbone.device.type == "cpu",
            disable_tqdm=True,
        )
        trainer = PPOTrainer(backbone, config, rows)
        trainer.update()  # the first one warms caches up
        measured = [trainer.update() for _ in range(args.updates)]
    phases = ("seconds", "seconds_rollout", "seconds_score", "seconds_optimize")
    result = {name: round(median(row[name] for row in measured), 2) for name in phases}
    result |= {"rss_loaded_mb": loaded, "peak_rss_mb": peak_rss_mb(), "copies": backbone.copies()}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
