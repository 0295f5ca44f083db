"""Step 3 of 7, with a few edited answers instead of votes (DITTO).

Somebody improves ten answers of the model. Each edit is an example to learn from, and better than
everything that the model writes to the same prompt: answers of the base and of the policy in each
round are sampled, and DPO learns from the pairs. Here the editor is simulated.

    python recipes/3_ditto.py

Costs: 10 edits, and 30 steps of DPO; the progress bars show the remaining time.
You should see: the loss of each round falls below 0.69, where the first one starts. At the end, the
script prints how many comparisons the new answers win on held-out prompts.
You get: runs/3_ditto with adapters/policy, edits.jsonl, rounds/N/pairs.jsonl, metrics.jsonl,
samples.jsonl and summary.json. It needs no earlier step: the untuned base is tuned.

Your own edits: put your file's name in EDITED. One row is one edit; `worse` may be left out:

    {"prompt": "How do I brew tea?", "completion": "Boil fresh water ...", "worse": ["Tea is ..."]}
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, generate, train_ditto
from lorarlhf.data import as_conversation, bundled, read_prompts, write_jsonl
from lorarlhf.data.readers import read_edits
from lorarlhf.evaluation.comparison import judge, samples_as_text
from lorarlhf.rewards.editor import edit
from lorarlhf.rewards.raters import Answer, Rater
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.ditto import DittoSettings

BASE = "smollm2-135m"
EDITED = None  # your own edits, such as "my_edits.jsonl"; None uses the simulated editor
EDITS = 10
SEEN = 2  # answers that the editor sees before each edit
ROUNDS = 3
MAX_NEW_TOKENS = 64
RATER = "cheerful"  # edits by its rule, and judges at the end without noise
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "3_ditto"
    length = 12 if args.quick else MAX_NEW_TOKENS

    rows = read_edits(EDITED) if EDITED else []
    backbone = Backbone.load(args.base, seed=SEED, log=print)
    rater = Rater.named(RATER, noise=0)
    rows = rows or simulated_edits(backbone, rater, 3 if args.quick else EDITS, length)
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    prompts = prompts[: 6 if args.quick else None]
    chats = [as_conversation(prompt) for prompt in prompts]
    before = generate(backbone, chats, role="base", max_new_tokens=length, seed=SEED)

    settings = DittoSettings(
        rounds=2 if args.quick else ROUNDS,
        steps=1 if args.quick else 10,
        max_new_tokens=length,
    )
    archive_earlier_run(folder)
    run = Run(folder, "ditto", {"seed": SEED, **vars(settings)})
    run.base(backbone)
    write_jsonl(folder / "edits.jsonl", rows)
    trained = train_ditto(backbone, rows, run, settings)

    after = generate(backbone, chats, max_new_tokens=length, seed=SEED + 1)
    old, new = ([Answer.of(completion) for completion in side] for side in (before, after))
    figures, samples = judge(rater, prompts, old, new, SEED)
    print(samples_as_text(samples))
    write_jsonl(folder / "samples.jsonl", samples)
    summary = run.finish("done", trained | figures)
    write_json(folder / "summary.json", summary)

    won = summary["win_rate"]
    low, high = won["ci95"]
    interval = f"95%: {low:.0%} to {high:.0%}"
    print(f"\nThe policy won {won['rate']:.0%} of {won['n']} comparisons ({interval}).")
    print(f"Wrote {folder}. Next: python recipes/4_chat.py")


def simulated_edits(backbone: Backbone, rater: Rater, count: int, length: int) -> list[dict]:
    """The base answers a few prompts, and the editor improves the better answer to each."""
    prompts = [row["prompt"] for row in read_prompts(bundled("prompts"))][:count]
    chats = [as_conversation(prompt) for prompt in prompts for _ in range(SEEN)]
    sampled = generate(backbone, chats, role="base", max_new_tokens=length, seed=SEED)
    rows = []
    for place, prompt in enumerate(prompts):
        seen = [Answer.of(one) for one in sampled[place * SEEN : (place + 1) * SEEN]]
        better = edit(rater, seen).text
        rows.append({"prompt": prompt, "completion": better, "worse": [a.text for a in seen]})
    return rows


if __name__ == "__main__":
    with exit_on_user_error():
        main()
