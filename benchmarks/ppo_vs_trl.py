"""lorarlhf's PPO and TRL's last PPO (1.12.0) on the same work, in turn.

    .venv/bin/python benchmarks/ppo_vs_trl.py                     # speed and memory, about 30 min
    .venv/bin/python benchmarks/ppo_vs_trl.py --updates 20 --seeds 5  # and the score gained: hours
    .venv/bin/python benchmarks/ppo_vs_trl.py --adapter-layers all
    .venv/bin/python benchmarks/ppo_vs_trl.py --stages     # lorarlhf only: stage_memory.py
    .venv/bin/python benchmarks/ppo_vs_trl.py --growth --ceiling     # lorarlhf only: ppo_limits.py

Both sides train the small base in NF4 with LoRA of rank 16 against the same reward adapter (`last`
pooling, which plain PEFT can open). They use the same prompts, 16 per update, and the same number
of optimizer steps. TRL is installed into a separate folder. Each side runs in its own process with
the micro-batch that was fastest for it in a short trial. After the last update both policies answer
the same held-out prompts, and the same reward scores the answers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from _memory import environment

FRIENDLY = ("cheerful / gloomy", "warm / cold", "encouraging / critical", "enthusiastic / neutral")
SIDES = ("ours", "trl")
WORTH_JUDGING = 10  # updates from which the held-out score is measured
HERE = Path(__file__).parent
# Measurements of lorarlhf only, by other scripts.
ALONE = {
    "stages": (
        [str(HERE / "stage_memory.py")],
        "instead: peak memory of SFT, reward, DPO, ORPO, PPO",
    ),
    "growth": ([str(HERE / "ppo_limits.py"), "--growth"], "instead: time and memory by size"),
    "ceiling": (
        [str(HERE / "ppo_limits.py"), "--ceiling"],
        "instead: share of the machine's limit",
    ),
    "profile": ([str(HERE / "ppo_limits.py"), "--profile"], "instead: what the time is spent on"),
    "adapter": ([str(HERE / "ppo_limits.py"), "--adapter"], "instead: what an adapter costs"),
}
PHASES = ("seconds", "generate", "score", "update")


def main() -> None:
    """Prepare once, run both sides in turn, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--updates", type=int, default=4, help="measured updates, after a first one"
    )
    parser.add_argument(
        "--seeds", type=int, default=2, help="rounds of both sides, each with another seed"
    )
    parser.add_argument("--batch", type=int, default=16, help="prompts per update")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--adapter-layers", default="upper-half", help="for lorarlhf; TRL uses all")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="default: the GPU if there is one"
    )
    parser.add_argument(
        "--micro", type=int, nargs="*", default=[4, 8, 16], help="micro-batch sizes to choose from"
    )
    parser.add_argument("--avx2", action="store_true", help="compute as a processor with AVX2 only")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--trl", type=Path, help="a folder with TRL 1.12.0 (default: install it)")
    for name, (_, text) in ALONE.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    args = parser.parse_args()
    if alone := [name for name in ALONE if getattr(args, name)]:
        for name in alone:
            words = ALONE[name][0]
            out = ["--out", str(args.out.with_stem(f"{args.out.stem}-{name}"))] if args.out else []
            command = [sys.executable, *words, *out]
            subprocess.run(command, check=True, env=environment(args.device, args.avx2))
        return
    with TemporaryDirectory() as folder:
        work = Path(folder)
        for layers in {args.adapter_layers, "all"}:
            prepare(work, layers)
        trl = args.trl or install_trl(work / "trl")
        trials = {side: try_micros(side, work, trl, args) for side in SIDES}
        best = {side: fastest(trials[side]) for side in SIDES}
        rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for seed in range(args.seeds):
            for side in SIDES:
                rounds[side].append(run(side, work, trl, args, best[side], seed, args.updates))
                write(args.out, {"rounds": rounds})  # a later round may fail, and this takes hours
        result = {"settings": settings_of(args), "micro_batch": best, "trials": trials}
        result |= compared(rounds)
        if args.updates >= WORTH_JUDGING:
            result |= gained(rounds, heldout_score(work, "all", args.max_new_tokens))
        result["rounds"] = rounds
    print(write(args.out, result))


def write(out: Path | None, result: dict[str, Any]) -> str:
    """The result as JSON; also written to `out`, if given."""
    text = json.dumps(result, indent=2)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    return text


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the figures depend on."""
    names = ("updates", "seeds", "batch", "max_new_tokens", "adapter_layers", "device")
    return {name: getattr(args, name) for name in names}


def install_trl(folder: Path) -> Path:
    """Install TRL 1.12.0 without its dependencies, which are installed already."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    subprocess.run([*command, "trl==1.12.0"], check=True)
    return folder


def prepare(work: Path, adapter_layers: str) -> None:
    """Make the reward adapter of a side: a fit on the base's states, with LoRA still zero."""
    from lorarlhf import Backbone, train_reward_model
    from lorarlhf.data.readers import bundled
    from lorarlhf.rewards.axes import read_axes
    from lorarlhf.runtime.run import Run
    from lorarlhf.stages.reward_model import RewardSettings

    axes = [row for row in read_axes(bundled("style_axes.jsonl")) if row[0] in FRIENDLY]
    rows = [
        {"prompt": f"Say something. {n}", "chosen": positive, "rejected": negative}
        for n, (_, positive, negative) in enumerate(axes)
    ]
    backbone = Backbone.load(adapter_layers=adapter_layers)
    run = Run(work / f"run-{adapter_layers}", "reward", {"seed": 0})
    train_reward_model(backbone, rows, run, RewardSettings(pooling="last", epochs=0))
    backbone.heads["reward"].bias.data.zero_()  # a constant; other tools' head has no bias
    backbone.save("reward", work / f"reward-{adapter_layers}")
    (work / "base.txt").write_text(backbone.base_path, encoding="utf-8")


Trials = dict[int, float | None]


class Failed(SystemExit):
    """The process of one side failed. Ends the benchmark unless it is caught."""


def try_micros(side: str, work: Path, trl: Path, args: argparse.Namespace) -> Trials:
    """Seconds per update by micro-batch; None for one that failed, for example out of memory."""
    if len(args.micro) == 1:
        return {args.micro[0]: 0.0}
    seconds: Trials = {}
    for micro in (size for size in args.micro if size <= args.batch):
        try:
            seconds[micro] = run(side, work, trl, args, micro, 0, 1)["seconds"]
        except Failed as error:
            print(error, file=sys.stderr)
            seconds[micro] = None
    return seconds


def fastest(seconds: Trials) -> int:
    """The micro-batch with the fastest update.

    Raises:
        SystemExit: all of them failed.
    """
    known = {micro: took for micro, took in seconds.items() if took is not None}
    if not known:
        raise SystemExit("No micro-batch worked. The errors are above.")
    return min(known, key=lambda micro: known[micro])


def run(
    side: str, work: Path, trl: Path, args: argparse.Namespace, micro: int, seed: int, updates: int
) -> dict[str, Any]:
    """Run one side in a process of its own."""
    ask = settings_of(args) | {"micro": micro, "seed": seed, "updates": updates, "work": str(work)}
    ask |= {"trl": str(trl)}
    program = HERE / f"_ppo_{side}.py"
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(ask)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(args.device, args.avx2),
    )
    if done.returncode:
        raise Failed(f"{program.name} failed with status {done.returncode}; its output is above")
    figures = json.loads(done.stdout.splitlines()[-1])
    if updates >= WORTH_JUDGING:
        layers = args.adapter_layers if side == "ours" else "all"
        length, policy = args.max_new_tokens, work / f"policy-{side}"
        figures["heldout_score"] = heldout_score(work, layers, length, policy)
    print(f"{side} seed {seed} micro {micro}: {figures}", file=sys.stderr)
    return figures


def heldout_score(
    work: Path, adapter_layers: str, length: int, policy: Path | None = None
) -> float:
    """Mean score of the answers to the held-out prompts; same seeds and reward for both sides."""
    from lorarlhf import Backbone, generate
    from lorarlhf.data.readers import as_conversation, bundled, read_prompts
    from lorarlhf.rewards.role import score_answers

    backbone = Backbone.load(adapter_layers=adapter_layers)
    backbone.load_role("reward", work / f"reward-{adapter_layers}")
    if policy is not None:
        backbone.load_role("policy", policy)
    role = "base" if policy is None else "policy"
    prompts = [as_conversation(row["prompt"]) for row in read_prompts(bundled("prompts_heldout"))]
    answers = generate(backbone, prompts, role=role, max_new_tokens=length, seed=7)
    scores = score_answers(backbone, prompts, [answer.text for answer in answers])
    return sum(scores) / len(scores)


def compared(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians by side, and the ratios of TRL's to ours."""
    sides = {
        side: {
            name: round(median(figures[name] for figures in rounds[side]), 3)
            for name in rounds[side][0]
            if isinstance(rounds[side][0][name], int | float)
        }
        for side in SIDES
    }
    ours, theirs = sides["ours"], sides["trl"]
    times = {name: round(theirs[name] / ours[name], 2) for name in PHASES if ours[name]}
    memory = {
        "ours_above_interpreter_mb": round(ours["peak_mb"] - ours["interpreter_mb"]),
        "trl_above_interpreter_mb": round(theirs["peak_mb"] - theirs["interpreter_mb"]),
    }
    share = memory["ours_above_interpreter_mb"] / memory["trl_above_interpreter_mb"]
    return {**sides, "times_faster": times, "memory": memory | {"share": round(share, 3)}}


def gained(rounds: dict[str, list[dict[str, Any]]], of_the_base: float) -> dict[str, Any]:
    """By how much each seed's policy scores above the base on the held-out prompts."""
    scores = {side: [row["heldout_score"] - of_the_base for row in rounds[side]] for side in SIDES}
    return {
        "heldout_score_of_the_base": of_the_base,
        "score_gained": {side: [round(x, 2) for x in row] for side, row in scores.items()},
        "score_gained_median": {side: round(median(row), 2) for side, row in scores.items()},
    }


if __name__ == "__main__":
    main()
