"""How long a training will take, before it starts: its work, and the speed of this machine.

The work is counted in tokens that pass the whole base once. The speed comes from the newest
finished run of the same stage and base in the project, or else from products of matrices of the
base's size.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lorarlhf.backbone.limits import count_adapter_layers
from lorarlhf.backbone.shape import Shape
from lorarlhf.cli.prepare import Prepared, read_stage_rows
from lorarlhf.project.project import Project
from lorarlhf.project.stage import Stage
from lorarlhf.runtime.files import read_json

if TYPE_CHECKING:
    import torch

SAMPLED = 32
"""Rows whose lengths stand for all of them."""
SAMPLED_TOKEN = 4.0
"""The cost of a token that is sampled, in tokens that are read: each reads all weights."""
PROBE_ROWS, PROBE_SECONDS = 512, 0.3
REACHED = 0.35
"""The share of the speed of plain products that a training reaches."""
SAME = ("base", "bits", "adapter_layers", "algorithm")
"""Settings that two runs share if the speed of one says something of the other."""
UNKNOWN = "it can't be estimated before it starts."
UNKNOWN_NOW = "it can't be estimated while a training has the device."
START_SECONDS = 12.0
"""For libraries, the base, and the report."""


def expected_time(
    prepared: Prepared, project: Project, busy: bool = False
) -> tuple[float | None, str]:
    """Seconds, and a sentence that says where they come from; (None, a sentence) if unknown.

    The rows' file has to be there.

    Args:
        busy: whether a training has the device: its speed can't be measured then.
    """
    base, stage, settings = prepared.base, prepared.request.stage, prepared.settings
    try:
        shape = Shape.of(base.config.to_dict())
        layers = count_adapter_layers(settings.backbone["adapter_layers"], shape.layers)
    except (KeyError, TypeError, ValueError):  # a family of another shape
        return None, UNKNOWN
    length = _mean_length(prepared)
    flat = settings.flat()
    try:
        work = passes(
            stage, flat, prepared.fingerprints["rows"]["count"], length, layers / shape.layers
        )
    except KeyError:  # a stage that is counted in other settings
        return None, UNKNOWN
    if (earlier := _earlier(project, stage, flat, length, layers / shape.layers)) is not None:
        run, a_pass = earlier
        seconds = START_SECONDS + a_pass * work
        return seconds, f"about {in_words(seconds)}, by the speed of the run {run}."
    if busy:
        return None, UNKNOWN_NOW
    weights = sum(a * b for a, b in shape.matrices) * shape.layers + shape.hidden * shape.vocabulary
    speed = REACHED * _products_a_second(base.device, base.dtype, shape)
    seconds = START_SECONDS + 2 * weights * work / speed
    return seconds, (
        f"about {in_words(seconds)}. It is the first run of its kind here, so it may take half or "
        "twice as long."
    )


def passes(
    stage: Stage, settings: Mapping[str, Any], rows: int, length: float, upper: float
) -> float:
    """The work of a stage, in tokens that pass the whole base forwards once.

    Args:
        settings: of the run, by their names.
        rows: to learn from, or prompts.
        length: tokens of a row in the mean: prompt and answer, or the prompt alone for rewards.
        upper: the share of the layers that have adapters. The backward costs twice their forward;
            the layers below have none.
    """
    learn, compare = 1 + 2 * upper, upper  # with the backward; the reference, above the trunk
    if stage.rewarded:
        answer = float(settings["max_new_tokens"])
        answers = settings["updates"] * settings["rollout_batch_size"]
        read = (length + answer) * (1 + 3 * upper + settings["num_ppo_epochs"] * 3 * upper)
        return answers * (answer * SAMPLED_TOKEN + read)
    if stage.name == "ditto":  # supervised tuning first; its pairs are drawn from all that it has
        answers = settings["rounds"] * rows * settings["answers"]
        pairs = settings["rounds"] * settings["steps"] * settings["batch_size"]
        sampled = answers * (settings["max_new_tokens"] * SAMPLED_TOKEN + length)
        tuned = rows * settings["sft_epochs"] * length * learn
        return tuned + sampled + 2 * pairs * length * (learn + compare)
    learned = rows * float(settings["epochs"]) * length
    if stage.name == "reward":  # both answers; every answer is read once for the fit
        return 2 * rows * length + 2 * learned * learn
    sides = 1 if stage.name in ("sft", "kto") else 2
    a_token = sides * (learn + compare * stage.reference)
    return learned * a_token + _rounds(settings, length, a_token)


def _rounds(settings: Mapping[str, Any], length: float, a_token: float) -> float:
    """The work of rounds of new answers: they are sampled, scored, and learned from as pairs."""
    prompts = settings.get("rounds", 0) * settings.get("round_prompts", 0)
    if not prompts:
        return 0.0
    answers, answer = prompts * settings["num_generations"], settings["max_new_tokens"]
    learned = prompts * settings["epochs"] * length
    return answers * (answer * SAMPLED_TOKEN + length) + learned * a_token


def in_words(seconds: float) -> str:
    """`30 seconds`, `4 minutes`, `2.5 hours`: no more exact than it is."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} seconds"
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def _mean_length(prepared: Prepared) -> float:
    """Tokens of a row in the mean of a sample: prompt and answer; for rewards the prompt alone."""
    from lorarlhf.cli.row_checks import prepare_rows

    request, stage = prepared.request, prepared.request.stage
    rows = read_stage_rows(stage, str(request.data))
    some = rows[:: max(1, len(rows) // SAMPLED)][:SAMPLED]
    lengths = [
        prepare_rows(stage, prepared.base.encoder, [row], prepared.settings)[1] for row in some
    ]
    sizes = [length.prompt + (0 if stage.rewarded else length.answer) for length in lengths]
    return sum(sizes) / max(1, len(sizes))


def _earlier(
    project: Project, stage: Stage, settings: Mapping[str, Any], length: float, upper: float
) -> tuple[str, float] | None:
    """The newest finished run of the stage, the base and the algorithm; seconds for its work of 1.

    Args:
        length, upper: see `passes`; its rows are taken to be as long as those of now.
    """
    for run in project.runs():
        about = read_json(run / "run.json")
        if about.get("stage") != stage.name or about.get("status") != "done":
            continue
        try:
            config = about["config"]
            same = all(config.get(name) == settings.get(name) for name in SAME)
            work = passes(stage, config, about["rows"]["count"], length, upper)
            seconds = max(1.0, about["seconds"] - START_SECONDS)
        except (AttributeError, KeyError, TypeError):  # of an earlier version
            continue
        if same and work > 0:
            return run.name, seconds / work
    return None


def _products_a_second(device: "torch.device", dtype: "torch.dtype", shape: Shape) -> float:
    """Multiplications and additions a second in products of the base's own sizes."""
    import torch

    left = torch.randn(PROBE_ROWS, shape.hidden, device=device, dtype=dtype)
    right = torch.randn(shape.hidden, shape.intermediate, device=device, dtype=dtype)
    for _ in range(2):
        left @ right
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < PROBE_SECONDS:
        for _ in range(5):
            left @ right
        if device.type != "cpu":
            torch.get_device_module(device).synchronize()
        count += 5
    took = time.perf_counter() - started
    return 2 * PROBE_ROWS * shape.hidden * shape.intermediate * count / took
