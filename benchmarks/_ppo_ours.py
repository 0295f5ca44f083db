"""Our side of `ppo_vs_trl.py`: a few updates, and what they took, as a line of JSON."""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from _memory import has_card, held_mb, interpreter_mb, peak_mb

ASKED = json.loads(sys.argv[1])


def main() -> None:
    """Tune, measure, save the policy."""
    import bitsandbytes  # noqa: F401  (what the libraries take is not what the models take)

    from lorarlhf import Backbone, PPOConfig, PPOTrainer
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts

    interpreter = interpreter_mb()
    context = interpreter if has_card() else 0.0  # not among what is held
    work = Path(ASKED["work"])
    backbone = Backbone.load(adapter_layers=ASKED["adapter_layers"], seed=ASKED["seed"])
    backbone.load_role("reward", work / f"reward-{ASKED['adapter_layers']}")
    loaded = context + held_mb()
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(bundled("prompts"))]
    # The same work as TRL's where all layers were asked for; the defaults otherwise.
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
