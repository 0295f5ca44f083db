"""Step 3 of 7, with RLOO or GRPO instead of PPO: train against the reward model without a critic.

The policy answers each prompt several times. An answer is compared with the others to the same
prompt, so nothing has to predict how good it will be, and there is no value adapter.

    python recipes/3_rloo.py
    python recipes/3_rloo.py --algorithm grpo

Costs: as many answers as 3_ppo.py, and no memory for a value adapter; the progress bar shows the
remaining time.
You should see: the score rises, and the KL rises to a few nats an answer. At the end, the script
prints how many comparisons the new answers win on held-out prompts.
You get: runs/3_rloo (or runs/3_grpo) with adapters/policy, report.html, samples.jsonl (a few
answers during the training), comparison.jsonl (the answers before and after) and metrics.jsonl. If
you run it again, the earlier run is kept in runs/3_rloo/earlier-1.

More answers to a prompt (num_generations) make the comparison steadier and leave fewer prompts in
an update. It has to divide rollout_batch_size.
"""

import argparse
from pathlib import Path
from typing import Any

from lorarlhf import Backbone, PPOConfig, UserError, generate
from lorarlhf.data import as_conversation, bundled, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.evaluation.report import write_report
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.critic_free import train_critic_free
from lorarlhf.stages.inputs import PPOSettings, RewardSpec

BASE = "smollm2-135m"
PROMPTS = bundled("prompts")
GENERATIONS = 4  # answers to a prompt
SETTINGS = {
    "updates": 30,
    "rollout_batch_size": 16,  # answers in an update
    "micro_batch_size": 4,  # sequences in one forward
    "max_new_tokens": 64,
    "learning_rate": 5e-4,
    "kl_coef": 0.1,  # the price of leaving the reference; larger stays closer
}
QUICK = {"updates": 2, "rollout_batch_size": 4, "max_new_tokens": 12}
RATER = "cheerful"  # judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two updates, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    parser.add_argument("--algorithm", choices=("rloo", "grpo"), default="rloo")
    args = parser.parse_args()
    folder = args.out / f"3_{args.algorithm}"
    supervised = args.out / "1_supervised" / "adapters" / "policy"
    reward = args.out / "2_reward_model" / "adapters" / "reward"
    for needed, recipe in ((supervised, "1_supervised.py"), (reward, "2_reward_model.py")):
        if not needed.is_dir():
            raise UserError(f"There is no {needed} yet. Run first: python recipes/{recipe}")

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    backbone.load_role("policy", supervised)
    backbone.load_role("reward", reward)
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    settings: dict[str, Any] = SETTINGS | (QUICK if args.quick else {})
    length = settings["max_new_tokens"]
    before = generate(backbone, chats, max_new_tokens=length, seed=SEED)

    archive_earlier_run(folder)
    run = Run(folder, "ppo", {"seed": SEED, "algorithm": args.algorithm, **settings})
    run.base(backbone)
    config = PPOConfig(output_dir=str(folder), seed=SEED, disable_tqdm=True, **settings)
    rows = [{"prompt": as_conversation(row["prompt"])} for row in read_prompts(PROMPTS)]
    own = PPOSettings(algorithm=args.algorithm, num_generations=GENERATIONS)
    trained = train_critic_free(backbone, rows, run, config, RewardSpec(), own)

    after = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer.of(completion) for completion in side] for side in (before, after))
    figures, samples = judge(Rater.named(RATER, noise=0), prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "comparison.jsonl", samples)
    summary = run.finish("done", trained | figures)
    write_json(folder / "summary.json", summary)
    write_report(folder)

    won = summary["win_rate"]
    low, high = won["ci95"]
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"\nThe policy won {won['rate']:.0%} of {won['n']} comparisons ({interval}).")
    print(f"Wrote {folder}. Next: python recipes/4_chat.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
