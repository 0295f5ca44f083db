"""Makes this folder anew with the code of commit 4ce490b; README.md has the commands."""

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorarlhf import checkpoints, demo
from lorarlhf.cli import main
from lorarlhf.cli_parser import EXPORT_FORMS
from lorarlhf.generation import Completion
from lorarlhf.preferences.accounts import set_password
from lorarlhf.preferences.records import Verdict
from lorarlhf.workspace import Workspace
from lorarlhf_ui.ahead import Ahead, Making
from lorarlhf_ui.collecting import Collecting
from lorarlhf_ui.engine_process import packed
from lorarlhf_ui.hidden_states import FILE, HiddenStates
from lorarlhf_ui.meter import Meter
from lorarlhf_ui.talking import Talking
from lorarlhf_ui.tasting import Tasting
from tests.pages import FakeEngine, stop_thread, until
from tests.tiny import write_base

HERE = Path(__file__).parent
WORK = Path("/tmp/lorarlhf-before-0.2")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "head_dim": 8}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1}
PROMPTS = [f"What is {number} and one more?" for number in range(10)]
HELD_OUT = [f"Is {number} even?" for number in range(6)]
COMMON = "device=cpu compute_dtype=float32 micro_batch_size=2"
PPO = COMMON + " rollout_batch_size=4 max_new_tokens=6 updates=4 save_steps=1 logging_steps=1"
OPTIONS = (
    PPO + " eval_steps=1 kl_target=0.5 kl_horizon=100 reward_weights=[1,0.5] num_minibatches=2"
)
OPTIONS += " score_clip=3 whiten_rewards=true policy_layers=2 trl.max_grad_norm=0.5"
DPO = COMMON + " batch_size=4 epochs=3 save_steps=1 beta=0.2 trl.label_smoothing=0.1"

DEMO = ("--out", "demo", "--adapter-layers", "1")
SCORED = ("--prompt", "What is 1?", "--answer", "It is one.", "--answer", "No idea at all.")
CHAT = ("--prompt", "What is 1?", "--temperature", "0", "--max-new-tokens", "12")
SFT = "project/runs/0001-sft"
LEFT_OUT = shutil.ignore_patterns("report.html", "preferences.sqlite*", "spent.json")


class Engine(FakeEngine):
    """Answers at once, with texts that differ and with hidden states."""

    numbers = itertools.count()

    def answer(self, prompt: Any, models: Sequence[str], **options: Any) -> Any:
        job = super().answer(prompt, models, **options)
        asked = (self.live if options.get("urgent") else self.ahead)[-1]
        words = [next(self.numbers) for _ in models]
        texts = [f"Answer {n}" + ", that is all" * (n % 3) + "." for n in words]
        rows = [packed(np.array([n % 3, 1.0, n % 2], np.float32)) for n in words]
        asked.end(*texts, features=rows)
        return job


def command(*words: str, sets: str = "", status: int = 0) -> None:
    options = [part for text in sets.split() for part in ("--set", text)]
    assert main([*words, *options]) == status


def said(*words: str) -> Any:
    """What a command prints as JSON."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command(*words, "--json", sets="device=cpu")
    return json.loads(printed.getvalue())


def stopped(*words: str, sets: str = "", presses: int = 1) -> None:
    """A command, and Ctrl-C when its first checkpoint is there; pressed twice it ends at once."""
    publish = checkpoints.publish

    def noted(scratch: Path, target: Path) -> None:
        publish(scratch, target)
        checkpoints.publish = publish
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)

    checkpoints.publish = noted
    command(*words, sets=sets, status=130)


def answered(backbone: Any, prompts: Sequence[Any], *, seed: int, **options: Any) -> Any:
    """In the demo the tiny base's answers are too alike for a rater."""
    words = ["Great! I am happy to help.", "Sure, gladly!", "No.", "It is so."]
    texts = [words[(n * n + seed) % 4] for n in range(len(prompts))]
    return [Completion(t, backbone.tokenizer(t).input_ids, True) for t in texts]


def rate(space: Workspace, making: Ahead, meter: Meter, store: Any) -> None:
    """Two raters' votes of every kind, through what the Rate page calls."""
    rate = Collecting(store, making, meter)
    pair = {"verdict": "ranked", "ranking": [[0], [1]]}
    said = [pair | {"strength": "much", "note": "clear"}, {"verdict": "tie"}, pair]
    said += [{"verdict": "ranked", "ranking": [[1], [0]], "strength": "slightly"}, pair]
    said += [pair | {"edited": f"A better answer, the {n}th."} for n in range(4)]
    said += [{"verdict": "both_good"}, {"verdict": "both_bad", "note": "Łódź 🙂\nno"}]
    said += [{"verdict": "skip"}, pair, pair]
    for rater in ("ann", "ben"):
        view = rate.begin(rater)
        for verdict in said:
            view = rate.vote(rater, view["token"], verdict, 1200)
            assert meter.wait()
    view = rate.undo("ann", view["last"] if rater == "ann" else store.last_vote("ann"))
    rate.vote("ann", view["token"], {"verdict": "tie", "note": "voted again"}, 900)
    rate.undo("ben", store.last_vote("ben"))  # and left so
    store.correct(store.votes(rater="ann")[0].id, Verdict("ranked", [[1], [0]], note="corrected"))
    making.make(Making("newest", "", 4, 1.0, 32, 1.0))
    view = rate.ask("ann", "Name four colours.")
    ranking = [[2], [0, 3], [1]]
    rate.vote("ann", view["token"], {"verdict": "ranked", "ranking": ranking}, 5000)
    assert meter.report("ann")["guesses"]


def compare(store: Any, making: Ahead, meter: Meter) -> None:
    """A vote on the Chat page, a blind comparison that is not over, and other settings."""
    talking, tasting = Talking(store, making, meter), Tasting(store, making)
    list(
        talking.say("ann", "Say hello.", ["base", "0001-sft"], system="Be brief.", temperature=0.9)
    )
    talking.vote("ann", "right")
    test = tasting.start("0001-sft", "0003-ppo", 4)
    until(lambda: tasting.made(test) == 4)
    for verdict in ({"verdict": "ranked", "ranking": [[0], [1]]}, {"verdict": "tie"}):
        tasting.vote("ann", tasting.begin("ann")["token"], verdict, 700)
    tasting.close()
    making.make(Making("0001-sft", "base", 2, 0.9, 64, 0.25))


def write_rows(file: Path, rows: list[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train(space: Workspace) -> None:
    """Three finished runs, and two that Ctrl-C ended."""
    folder = str(space.folder)
    base = ("--base", "base")  # else later runs name it by its whole path
    command("sft", folder, *base, sets=f"{COMMON} batch_size=4 epochs=2")
    command(
        "reward", folder, *base, sets=f"{COMMON} batch_size=4 epochs=1 holdout=0.3 pooling=last"
    )
    command(
        "ppo", folder, *base, sets=f"{PPO} learning_rate=0.1 kl_coef=0 critic_warmup=0 updates=8"
    )
    more = ["--reward-function", "functions.py:length", "--judge-function", "functions.py:short"]
    more += ["--eval", "heldout.jsonl", "--reward", f"{folder}/runs/0002-reward"]
    stopped("ppo", folder, *base, *more, "--config", "ppo.yaml", sets=OPTIONS)
    stopped("dpo", folder, *base, sets=DPO)
    demo.generate = answered
    stopped("demo", "--quick", "--base", "base", "--bits", "16", *DEMO, presses=2)


def make() -> None:
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    os.chdir(WORK)
    write_base(Path("base"), **SIZES)
    write_rows(Path("prompts.jsonl"), [{"prompt": prompt} for prompt in PROMPTS])
    write_rows(Path("heldout.jsonl"), [{"prompt": prompt} for prompt in HELD_OUT])
    pairs = [{"prompt": p, "chosen": "Good.", "rejected": "No idea."} for p in PROMPTS[:3]]
    write_rows(Path("pairs.jsonl"), pairs)
    Path("ppo.yaml").write_text("temperature: 0.9\nppo:\n  gamma: 0.99\n", encoding="utf-8")
    shutil.copy(HERE / "functions.py", ".")
    new = ("--base", "base", "--bits", "16", "--adapter-layers", "2", "--prompts", "prompts.jsonl")
    command("new", "project", *new)
    space = Workspace("project")
    with space.project.open("a", encoding="utf-8") as file:
        file.write("\nlora_rank: 2\nlora_alpha: 4\n")
    command("votes", "project", "--import", "pairs.jsonl")
    store, engine = space.store(), Engine()
    states = HiddenStates(WORK / FILE)  # a cache, which may be missing
    states.use("fake")
    making, meter = Ahead(space, space.store(), engine, states), Meter(space.store(), states)
    rate(space, making, meter, store)
    set_password(store, "ben", "correct horse")
    stop_thread(making)
    train(space)
    compare(store, making, meter)
    for form in EXPORT_FORMS:
        purpose = "all" if form == "own" else "train"
        out = f"exports/{form}.jsonl"
        command("votes", "project", "--export", form, "--purpose", purpose, "--out", out)
    answers = {"score": said("score", "project", *SCORED), "chat": said("chat", SFT, *CHAT)}
    Path("answers.json").write_text(json.dumps(answers, indent=2) + "\n", encoding="utf-8")
    keep(space)


def keep(space: Workspace) -> None:
    """Copy what was made to this folder, of the checkpoints only those that a run goes on from."""
    for name in ("project", "demo", "exports"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        shutil.copytree(name, HERE / name, ignore=LEFT_OUT)
    for name in ("heldout.jsonl", "ppo.yaml", "answers.json"):
        shutil.copy(name, HERE)
    for done in ("0001-sft", "0002-reward", "0003-ppo"):
        shutil.rmtree(HERE / "project" / "runs" / done / "checkpoints")
    for stopped in HERE.glob("project/runs/*/checkpoints"):
        shutil.rmtree(stopped / "checkpoint-1")
    space.store().backup(HERE / "project" / "preferences.sqlite")


if __name__ == "__main__":
    make()
