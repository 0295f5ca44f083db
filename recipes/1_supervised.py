"""Step 1 of 4: show the model how to answer.

Trains the policy's adapter on written demonstrations (supervised fine-tuning, by TRL's SFTTrainer).
The result is what steps 2 and 3 start from, and the reference that they stay close to.

    python recipes/1_supervised.py

Costs: about three minutes on two cores, 2.4 GB of memory.
You should see: the loss fall from about 3.5 to 2.5, and
answers that become one short paragraph, where the base writes lists or never comes to an end.
You get: runs/1_supervised with adapters/policy, adapters/reference, metrics.jsonl, run.json and
summary.json. Running it again keeps the earlier run in runs/1_supervised/earlier-1.

Your own data: name your file in DATA (JSONL, JSON, CSV or parquet; docs/data.md shows the columns).
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, generate, train_sft
from lorarlhf.data import as_conversation, bundled, read_demonstrations, read_prompts
from lorarlhf.errors import told_plainly
from lorarlhf.folders import set_aside
from lorarlhf.runs import Run, write_json
from lorarlhf.stages.sft import SFTSettings

BASE = "smollm2-135m"  # or a folder, or a Hugging Face id
DATA = bundled("demonstrations")  # 70 questions, each with an answer of about 40 words
EPOCHS = 3  # passes over the demonstrations
LEARNING_RATE = 1e-3  # high, for a base this small; 2e-4 from 1B parameters on
BATCH_SIZE = 8  # demonstrations an optimizer step
MAX_NEW_TOKENS = 64  # of the answers that are shown
TEMPERATURE = 0.7  # of those; 1 is bolder, 0 always takes the likeliest word
SHOWN = 4  # questions answered before and after
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows: does it run at all?")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where all recipes write")
    args = parser.parse_args()
    folder = args.out / "1_supervised"
    length = 12 if args.quick else MAX_NEW_TOKENS

    rows = read_demonstrations(DATA)[: 8 if args.quick else None]
    questions = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    questions = questions[: 2 if args.quick else SHOWN]
    chats = [as_conversation(question) for question in questions]
    backbone = Backbone.load(args.base, seed=SEED, say=print)
    sampling = {"max_new_tokens": length, "temperature": TEMPERATURE, "seed": SEED}
    before = generate(backbone, chats, role="base", **sampling)

    settings = SFTSettings(
        epochs=1 if args.quick else EPOCHS, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE
    )
    set_aside(folder)
    run = Run(folder, "sft", {"data": str(DATA), "seed": SEED, **vars(settings)})
    run.base(backbone)
    summary = run.finish("done", train_sft(backbone, rows, run, settings))
    write_json(folder / "summary.json", summary)

    after = generate(backbone, chats, role="policy", **sampling)
    for question, old, new in zip(questions, before, after, strict=True):
        print(f"\n> {question}")
        print("  base: ", " ".join(old.text.split()))
        print("  tuned:", " ".join(new.text.split()))
    print(f"\nLoss {summary['loss_first']:.2f} -> {summary['loss_last']:.2f}. Wrote {folder}.")
    print("Next: python recipes/2_reward_model.py")


if __name__ == "__main__":
    with told_plainly():
        main()
