"""The lorarlhf side of `ppo_vs_trl.py`: runs a few updates and prints the figures as JSON."""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from _memory import has_card, held_mb, interpreter_mb, peak_mb

ASKED = json.loads(sys.argv[1])


def main() -> None:
    """Train, measure and save the policy."""
    import bitsandbytes  # noqa: F401  (loaded first: the libraries' memory does not count as the model's)

    from lorarlhf import Backbone, PPOConfig, PPOTrainer
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    interpreter = interpreter_mb()
    context = interpreter if has_card() else 0.0  # `held_mb` does not include it
    work = Path(ASKED["work"])
    backbone = Backbone.load(adapter_layers=ASKED["adapter_layers"], seed=ASKED["seed"])
    backbone.load_role("reward", work / f"reward-{ASKED['adapter_layers']}")
    loaded = context + held_mb()
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(bundled("prompts"))]
    # With all layers this is the same work as TRL's; otherwise the defaults are used.
    trained = backbone.adapter_layers if ASKED["adapter_layers"] == "all" else None
    with TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder,
            updates=ASKED["updates"] + 1,
            seed=ASKED["seed"],
            rollout_batch_size=ASKED["batch"],
            max_new_tokens=ASKED["max_new_tokens"],
            micro_batch_size=ASKED["micro"],
            critic_warmup=0,
            policy_layers=trained,
            value_layers=trained,
            use_cpu=backbone.device.type == "cpu",
            disable_tqdm=True,
        )
        trainer = PPOTrainer(backbone, config, rows)
        trainer.train()
        measured = [row for row in trainer.state.log_history if "seconds" in row][1:]
    backbone.save("policy", work / "policy-ours")
    names = {
        "seconds": "seconds",
        "generate": "seconds_rollout",
        "score": "seconds_score",
        "update": "seconds_optimize",
    }
    figures = {name: median(row[key] for row in measured) for name, key in names.items()}
    figures |= {"interpreter_mb": interpreter, "loaded_mb": loaded, "peak_mb": context + peak_mb()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
