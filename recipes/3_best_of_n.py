"""Step 3 of 7, without any training: the best of several answers, picked by the reward model.

The model of step 1 answers each held-out prompt N times, and the reward model of step 2 picks the
answer with the highest score. It shows what the votes reward before anything is tuned, and what a
tuned policy has to beat.

    python recipes/3_best_of_n.py

Costs: N + 1 answers to each of 60 prompts, and no training.
You should see: the picked answers win more than half of the comparisons with single answers. The
larger N is, the more they win, and the slower an answer comes.
You get: runs/3_best_of_n with samples.jsonl and summary.json, and no adapter.

`lorarlhf chat PROJECT --best-of 4` chats this way.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, UserError, generate
from lorarlhf.data import as_conversation, bundled, read_prompts, write_jsonl
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.rewards.best_of import best_of, kl_bound
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json

BASE = "smollm2-135m"
N = 4  # answers to a prompt
MAX_NEW_TOKENS = 64
RATER = "cheerful"  # judges at the end, by its rule without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "3_best_of_n"
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
    length = 12 if args.quick else MAX_NEW_TOKENS
    print(f"Answering {len(prompts)} prompts {N} times ...")
    single = generate(backbone, chats, max_new_tokens=length, seed=SEED)
    picked = best_of(backbone, chats, N, role="policy", max_new_tokens=length, seed=SEED + 1)

    old = [Answer.of(completion) for completion in single]
    new = [Answer.of(found.answer) for found in picked]
    figures, samples = judge(Rater.named(RATER, noise=0), prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "samples.jsonl", samples)
    write_json(folder / "summary.json", {"best_of": N, "kl_at_most": kl_bound(N), **figures})

    won = figures["win_rate"]
    low, high = won["ci95"]
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"\nThe best of {N} won {won['rate']:.0%} of {won['n']} comparisons ({interval}),")
    print(f"at a KL of at most {kl_bound(N):.2f} nats. Wrote {folder}.")
    print("Next: tune a policy, for example python recipes/3_ppo.py")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
