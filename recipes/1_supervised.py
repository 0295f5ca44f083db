"""Step 1 of 7: supervised fine-tuning, which shows the model how to answer.

Trains the policy's adapter on written demonstrations, with TRL's SFTTrainer. Steps 2 and 3 start
from the result and use it as the reference to stay close to.

    python recipes/1_supervised.py

Costs: about three minutes on two cores, 2.4 GB of memory.
You should see: the loss falls from about 3.5 to 2.5. The answers become one short paragraph, while
the base writes lists or does not come to an end.
You get: runs/1_supervised with adapters/policy, adapters/reference, metrics.jsonl, run.json and
summary.json. If you run it again, the earlier run is kept in runs/1_supervised/earlier-1.

Your own data: put your file's name in DATA (JSONL, JSON, CSV or parquet). docs/data.md describes
the columns.
"""

import argparse
from pathlib import Path

from lorarlhf import Backbone, generate, train_sft
from lorarlhf.data import as_conversation, bundled, read_demonstrations, read_prompts
from lorarlhf.runtime.errors import exit_on_user_error
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import archive_earlier_run
from lorarlhf.stages.sft import SFTSettings

BASE = "smollm2-135m"  # or a folder, or a Hugging Face id
DATA = bundled("demonstrations")  # 70 questions, each with an answer of about 40 words
EPOCHS = 3  # passes over the demonstrations
LEARNING_RATE = None  # by the base's width, at most 1e-3
BATCH_SIZE = 8  # demonstrations per optimizer step
MAX_NEW_TOKENS = 64  # length of the answers that are shown
TEMPERATURE = 0.7  # for those answers; 0 always takes the likeliest token
SHOWN = 4  # questions that are answered before and after the training
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few rows, to see that it runs")
    parser.add_argument("--base", default=BASE)
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of all recipes' runs"
    )
    args = parser.parse_args()
    folder = args.out / "1_supervised"
    length = 12 if args.quick else MAX_NEW_TOKENS

    rows = read_demonstrations(DATA)[: 8 if args.quick else None]
    questions = [row["prompt"] for row in read_prompts(bundled("prompts_heldout"))]
    questions = questions[: 2 if args.quick else SHOWN]
    chats = [as_conversation(question) for question in questions]
    backbone = Backbone.load(args.base, seed=SEED, log=print)
    sampling = {"max_new_tokens": length, "temperature": TEMPERATURE, "seed": SEED}
    before = generate(backbone, chats, role="base", **sampling)

    settings = SFTSettings(
        epochs=1 if args.quick else EPOCHS, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE
    )
    archive_earlier_run(folder)
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
    with exit_on_user_error():
        main()
