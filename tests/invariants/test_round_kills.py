"""`kill -9` of `lorarlhf round` between its steps and in the training: the same command goes on.

As in `test_kills.py`, real processes are killed. Each dies at one place, and the last one has to
end with what a round has that was never killed.
"""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences.blind_comparisons import comparisons
from lorarlhf.project.project import Project
from lorarlhf.project.rounds import rounds
from lorarlhf.runtime.files import append_jsonl, read_json
from tests.forked import context
from tests.project_rounds import short_answers, small_project, vote

BEFORE, AFTER, INSIDE = "before", "after", "inside"
KILLS = [
    *((AFTER, "reward"), (INSIDE, "method"), (BEFORE, "method"), (AFTER, "method")),
    *((BEFORE, "compare"), (AFTER, "compare"), (BEFORE, "eval"), (BEFORE, "card")),
    (AFTER, "card"),
]
"""Before and after a step is noted as done, and in the second of three updates of PPO."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_round(folder: str, when: str, where: str) -> None:
    """In a process of its own: the command, killed at one place."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from lorarlhf.cli import main as cli
    from lorarlhf.ppo.learner import Learner
    from lorarlhf.project.rounds import Round

    short_answers()
    note: Callable[..., None] = Round.note

    def noted(self: Round, step: str, **values: Any) -> None:
        here = step == where and "done" in values
        if here and when == BEFORE:
            die()
        note(self, step, **values)
        if here and when == AFTER:
            die()

    Round.note = noted  # type: ignore[method-assign]
    epochs, updates = Learner.run_epochs, 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal updates
        updates += 1
        if when == INSIDE and updates == 2:
            die()
        return epochs(*args, **kwargs)

    Learner.run_epochs = counted  # type: ignore[method-assign]
    raise SystemExit(cli.main(["round", folder]))


def without_times(value: Any) -> Any:
    """Without what takes another value in each run: times, memory, and the folder's name."""
    if isinstance(value, dict):
        timed = ("seconds", "started", "_mb", "per_second")
        kept = {k: v for k, v in value.items() if not any(word in k for word in timed)}
        return {key: without_times(one) for key, one in kept.items() if key != "options"}
    return [without_times(one) for one in value] if isinstance(value, list) else value


def results(project: Project) -> tuple[Any, list[Any], dict[str, bytes]]:
    """The round, its comparison with the answers, and the bytes of all adapters and of eval."""
    (one,) = rounds(project)
    store = project.store()
    texts = store.rows(
        "SELECT i.taste_test, q.messages, c.text, c.source FROM item i "
        "JOIN prompt q ON q.id = i.prompt_id JOIN item_completion ic ON ic.item_id = i.id "
        "JOIN completion c ON c.id = ic.completion_id WHERE i.purpose = 'compare' "
        "ORDER BY i.id, ic.position"
    )
    files = [*project.folder.glob("runs/*/adapters/**/*.safetensors")]
    files.append(one.folder / "eval/answers.jsonl")
    found = {str(file.relative_to(project.folder)): file.read_bytes() for file in sorted(files)}
    return without_times(one.about()), [tuple(row) for row in texts], found


@pytest.mark.slow
def test_a_round_killed_between_steps_is_the_one_never_killed(
    tiny_base: Path, tmp_path: Path
) -> None:
    server = context()

    def run(folder: Path, when: str = "", where: str = "") -> int:
        process = server.Process(target=run_round, args=(str(folder), when, where))
        process.start()
        process.join()
        return int(process.exitcode or 0)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        vote(small_project(folder, tiny_base), range(20))
    assert run(whole) == 0
    for place, (when, where) in enumerate(KILLS):
        assert run(parts, when, where) == -signal.SIGKILL, (when, where)
        if place == 0:  # later votes do not change a round that has begun
            vote(Project(parts), range(50, 55))
        if place == 1:  # nor do prompts that somebody types
            append_jsonl(Project(parts).prompts, {"prompt": "Typed on the Rate page?"})
    about = read_json(parts / "runs/0002-ppo/run.json")
    assert about["status"] == "done" and not list(parts.glob("runs/*/earlier-*"))
    assert run(parts) == 0
    ours, theirs = results(Project(parts)), results(Project(whole))
    assert ours[0] == theirs[0] and ours[0]["result"]
    assert ours[1] == theirs[1] and len(ours[1]) == 8
    assert len(comparisons(Project(parts).store())) == 1
    assert ours[2] == theirs[2] and len(ours[2]) >= 4
    logged = [json.loads(line) for line in (parts / "runs/0002-ppo/metrics.jsonl").open()]
    assert [row["step"] for row in logged if "kl" in row] == [1, 2, 3]
    assert sorted(path.name for path in parts.glob("rounds/*")) == ["0001"]
