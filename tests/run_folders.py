"""Run folders as the training commands leave them, written without any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorarlhf.project.project import Project
from lorarlhf.project.run_list import RunInfo, read_runs

STARTED = "2026-11-28T19:49:49"


def write_run(
    project: Project,
    name: str,
    *,
    role: str = "policy",
    summary: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, Any]] = (),
    status: str = "done",
    config: Mapping[str, Any] | None = None,
    **about: Any,
) -> Path:
    """A run's folder.

    Args:
        role: of its adapter, whose weights are a kilobyte of zeros; "" for none.
        rows: of its log.
        config: its settings and files; runs of the project by their names alone.
        about: more of its record.
    """
    folder = project.folder / "runs" / name
    folder.mkdir(parents=True)
    if role:
        place = folder / "adapters" / role
        place.mkdir(parents=True)
        (place / "adapter_config.json").write_text("{}")
        (place / "adapter_model.safetensors").write_bytes(bytes(1024))
    named = {
        key: str(folder.parent.resolve() / value) if key in ("init", "reward") else value
        for key, value in (config or {}).items()
    }
    record = {
        "stage": name.split("-")[1],
        "status": status,
        "config": named,
        "started": STARTED,
        "seconds": 90.0,
        "base": "smollm2-135m",
        "summary": dict(summary or {}),
    }
    (folder / "run.json").write_text(json.dumps(record | about))
    lines = "".join(json.dumps(dict(row)) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def ppo_rows(count: int, start: float = 0.0) -> list[dict[str, Any]]:
    """A log of PPO: the score rises by a tenth an update, the KL by a fifth."""
    return [
        {"stage": "ppo", "step": n, "score": start + n / 10, "kl": n / 5, "seconds": 1.0}
        for n in range(1, count + 1)
    ]


def four_runs(project: Project) -> Project:
    """A supervised run, a reward model and a PPO run from both; and one that goes on."""
    write_run(project, "0001-sft", summary={"loss_last": 1.5, "steps": 4})
    reward = {"heldout_accuracy": 0.75, "n": 40}
    write_run(project, "0002-reward", role="reward", summary=reward, config={"init": "0001-sft"})
    sources = {"init": "0001-sft", "reward": "0002-reward", "updates": 20}
    done = {"updates": 8, "kl_per_sequence": 1.25, "alarms": ["useless_value"]}
    write_run(project, "0003-ppo", summary=done, config=sources, rows=ppo_rows(8))
    write_run(project, "0004-ppo", config=sources, rows=ppo_rows(3), status="stopped")
    return project


def by_name(project: Project) -> dict[str, RunInfo]:
    """The runs of a project as data."""
    return {run.name: run for run in read_runs(project)}
