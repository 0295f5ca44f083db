"""What the tests of rounds share: a small project with votes, and finished rounds made by hand."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorarlhf.preferences.records import Verdict
from lorarlhf.project.project import Project, create
from lorarlhf.project.rounds import STEPS, Round
from lorarlhf.runtime.files import write_json, write_jsonl

SETTINGS = """
compute_dtype: float32
lora_rank: 4
reward:
  epochs: 0
ppo:
  updates: 3
  rollout_batch_size: 4
  max_new_tokens: 6
  critic_warmup: 0
  save_steps: 1
  learning_rate: 0.003
dpo:
  epochs: 1
  batch_size: 8
"""
JUDGE = """
def longer(prompts, completions, **columns):
    return [float(len(one[0]["content"])) for one in completions]
"""


def small_project(folder: Path, base: Path) -> Project:
    """A project on the tiny base whose rounds take seconds."""
    project = create(folder, base=str(base), bits=16)
    (folder / "round.yaml").write_text(SETTINGS)
    (folder / "judge.py").write_text(JUDGE)
    held_out = [{"prompt": f"Why is {n}?"} for n in range(4)]
    write_jsonl(folder / "prompts_heldout.jsonl", held_out)
    write_jsonl(folder / "prompts.jsonl", [{"prompt": f"What is {n} for?"} for n in range(8)])
    return project


def short_answers() -> None:
    """Let `eval` and the blind comparison take few tokens; for a process of a test alone."""
    from lorarlhf.cli import eval_answers, round_steps

    eval_answers.ANSWER_TOKENS, eval_answers.TASK_TOKENS = 6, 3
    round_steps.MAX_NEW_TOKENS = 6


def vote(project: Project, numbers: Iterable[int], verdict: str = "ranked") -> None:
    """A vote on one prompt for each number."""
    store = project.store()
    for number in numbers:
        answers = [(f"It is good {number}.", "base"), ("No idea at all.", "base")]
        item = store.add_item(f"What is {number}?", answers)
        ranking = [[0], [1]] if verdict == "ranked" else []
        store.judge(store.present(item, "ann").token, Verdict(verdict, ranking))
    store.close()


def result(**changes: Any) -> dict[str, Any]:
    """What the steps of a round found."""
    figures = {"kl_se": 0.1, "kl_bound": None, "ended": 1.0}
    task = {"kind": "all", "tasks": 100, "before": 64, "after": 62}
    task |= {"low": -0.09, "high": 0.05, "p": 0.7, "change": -0.02}
    reward = {"accuracy": 0.71, "low": 0.66, "high": 0.76, "of": 312}
    return {
        "reward": reward | {"advice": "About 310 more votes are worth it."},
        "policy": figures | {"kl": 4.2, "length": 83.0},
        "previous": figures | {"kl": 2.1, "length": 61.0},
        "judges": [judge("reward of 0003-reward", (0.02, 0.2), independent=False)],
        "tasks": {"previous": task, "base": task | {"before": 70, "change": -0.08}},
        "comparison": {"first": "runs/0002-ppo", "second": "runs/0004-ppo", "items": 30},
        "alarms": [],
        "seconds": 2592.0,
    } | changes


def judge(name: str, ci95: tuple[float, float], independent: bool = True) -> dict[str, Any]:
    """A judge whose interval of the difference from the policy before is given."""
    return {
        "judge": name,
        "independent": independent,
        "base": {"rate": 0.64, "ci95": [0.52, 0.75], "n": 60},
        "previous": {"difference": sum(ci95) / 2, "ci95": list(ci95)},
    }


def finished_round(project: Project, number: int, **changes: Any) -> Round:
    """A finished round with its two runs, whose adapters are empty."""
    runs = {"reward": f"runs/{2 * number - 1:04d}-reward", "method": f"runs/{2 * number:04d}-ppo"}
    for step, name in runs.items():
        folder = project.folder / name
        role = "reward" if step == "reward" else "policy"
        (folder / "adapters" / role).mkdir(parents=True)
        (folder / "adapters" / role / "adapter_config.json").write_text("{}")
        write_json(folder / "run.json", {"stage": name.rpartition("-")[2], "status": "done"})
    steps: dict[str, Any] = {name: {"done": True, "seconds": 1.0} for name in STEPS}
    for step, name in runs.items():
        steps[step]["run"] = name
    steps["compare"] |= {"first": "base", "second": runs["method"], "items": 4}
    record: dict[str, Any] = {
        "votes": {"count": 20, "new": 20, "newest": 20},
        "parents": {"round": None, "policy": None},
        "steps": steps,
        "result": result(),
    }
    made = Round(project.folder / "rounds" / f"{number:04d}", "ppo", **record | changes)
    made.save()
    return made
