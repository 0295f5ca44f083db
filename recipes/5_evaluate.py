"""Step 5 of 7: did it get better? All tuned policies against the base, on held-out prompts.

The base and the policy of each script of step 3 answer prompts that nothing was trained on. A rater
judges by its rule without noise, with the sides shuffled.

    python recipes/5_evaluate.py

Costs: 60 answers of the base and 60 of each policy, and no training.
You should see: for each policy the share of comparisons that it wins, with a 95% interval. Where
the interval includes 50%, the policy may be no better than the base. Watch the length: a rule that
likes long answers can be won by length alone.
You get: runs/5_evaluate/summary.json.

`lorarlhf eval RUN ...` does more: KL, several judges, best of n, and what was forgotten.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, UserError, generate
from lorarlhf.data import as_conversation, bundled, read_prompts
from lorarlhf.evaluation.comparison import judge
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json

BASE = "smollm2-135m"
RATER = "cheerful"  # the one that voted in step 2
MAX_NEW_TOKENS = 64
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six prompts, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "5_evaluate"
    found = sorted(args.out.glob("3_*/adapters/policy"))
    if not found:
        raise UserError(
            f"There is no tuned policy in {args.out} yet. Run first: python recipes/3_ppo.py"
        )

    backbone = Backbone.load(args.base, seed=SEED, log=print)
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    length = 12 if args.quick else MAX_NEW_TOKENS
    sampled = generate(backbone, chats, role="base", max_new_tokens=length, seed=SEED)
    base = [Answer.of(completion) for completion in sampled]

    rater, results = Rater.named(RATER, noise=0), {}
    print(f"\n{'policy':12}  wins  95%           tokens")
    for policy in found:
        name = policy.parts[-3]
        backbone.load_role("policy", policy)
        sampled = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
        figures, _ = judge(rater, prompts, base, [Answer.of(one) for one in sampled], SEED)
        results[name] = figures
        won = figures["win_rate"]
        low, high = won["ci95"]
        tokens = f"{figures['mean_length_before']:.0f} -> {figures['mean_length_after']:.0f}"
        print(f"{name:12}  {won['rate']:4.0%}  {low:4.0%} to {high:4.0%}  {tokens}")
    folder.mkdir(exist_ok=True)
    write_json(folder / "summary.json", {"prompts": len(prompts), "policies": results})
    print(f"\nWrote {folder}. Next: python recipes/6_rounds.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
