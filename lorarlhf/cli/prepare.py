"""From a request to everything that a training needs, found once and checked before loading."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorarlhf.cli.request import TrainRequest
from lorarlhf.data.file_formats import FileRow
from lorarlhf.data.readers import read_prompts
from lorarlhf.project.lineage import SourceRun, check_same_base, read_source_run
from lorarlhf.project.settings import Settings, resolve
from lorarlhf.project.settings_sources import SettingValue
from lorarlhf.project.stage import Row, Stage
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run_folder import begun_with, check_writable, fingerprint
from lorarlhf.runtime.terminal import log_to_stderr

if TYPE_CHECKING:
    from lorarlhf.backbone.base import Backbone
    from lorarlhf.backbone.base_files import BaseFiles
    from lorarlhf.cli.preflight import MemoryEstimate
    from lorarlhf.preferences.imports import Import
    from lorarlhf.stages.inputs import StageInputs

SOURCE_ROLES = {"init": "policy", "reward": "reward"}
"""Which role comes from the run that an option names."""


@dataclass(frozen=True)
class Prepared:
    """Everything about a training but the loaded base and the open run.

    Attributes:
        sources: the runs that it starts from, by option.
        base: with device, dtype, configuration and tokenizer.
        inputs: rows, settings and TRL's configuration.
        estimate: None where the memory can't be counted.
        fingerprints: of the `rows`, and of the `prompts` of rounds of new answers, to see at
            `--resume` whether they have changed.
    """

    request: TrainRequest
    settings: Settings
    sources: dict[str, SourceRun]
    base: "BaseFiles"
    inputs: "StageInputs"
    estimate: "MemoryEstimate | None"
    fingerprints: dict[str, Row]

    def record(self) -> dict[str, Any]:
        """The run's `config` in run.json: its files and its settings."""
        return self.request.recorded() | self.settings.flat()


def prepare(request: TrainRequest, project: list[SettingValue]) -> Prepared:
    """Read files, resolve settings, open the base, and check that everything fits.

    Args:
        project: the settings of the request's project.

    Raises:
        UserError: something is wrong with the files, settings, runs, base or memory.
    """
    stage = request.stage
    assert request.data is not None  # `fill_in` has named it or raised an error
    if request.minutes is not None and not request.minutes > 0:
        raise UserError(f"--minutes is above 0, not {request.minutes:g}.")
    rows = _as_begun(request, read_stage_rows(stage, request.data), "rows")
    stage.check_rows(rows)
    fingerprints = {"rows": fingerprint(rows)}
    if stage.rewarded:
        from lorarlhf.cli import ppo_options

        spec = ppo_options.read_rewards(request)
    eval_rows = read_stage_rows(stage, request.eval) if request.eval else None
    sources = _read_sources(request)
    settings = _resolve(request, project, sources)
    check_same_base(list(sources.values()), "base" in settings.given or bool(request.earlier))
    if stage.rewarded:
        ppo_options.check_rewards(request, settings, spec)
        ppo_options.check_pessimism(settings, sources.get("reward"))
        spec = replace(spec, weights=settings.own["reward_weights"])
    in_rounds = stage.rounds and _in_rounds(request, settings, sources)
    check_writable(request.folder)

    from lorarlhf.project.load import open_base_of
    from lorarlhf.stages.inputs import PPOInputs, StageInputs

    own = stage.make_settings(settings.own, settings.trl)
    args = _arguments(request, settings, own)
    base = open_base_of(settings)
    if stage.rewarded:
        ppo_options.check_vllm(settings, base.path)
    rounds: Any = None
    parts: tuple[Any, Any]
    if in_rounds:  # measured on held-out prompts, so they need no held-out votes
        rounds, fingerprints["prompts"] = _round_prompts(request, settings, base, rows)
        parts = _votes_to_learn(rows, rounds[1]), None
    else:  # each round of new answers has its own number of pairs
        parts = stage.split(rows, eval_rows, own, settings.seed)
        _fill_in_rates(request.stage, settings, own, args, base, parts[0])
    left_out = len(rows) - len(parts[0])
    rows, eval_rows, estimate = _check_rows(request, settings, base, *parts, rounds)
    inputs = StageInputs(rows, own, args, eval_rows, request.resume)
    if stage.rewarded:
        inputs = PPOInputs(**vars(inputs), spec=spec)
    if rounds is not None:
        from lorarlhf.stages.round_inputs import RoundInputs

        inputs = RoundInputs(
            **vars(inputs), prompts=rounds[0], held_out=rounds[1], votes_left_out=left_out
        )
    return Prepared(request, settings, sources, base, inputs, estimate, fingerprints)


def _as_begun(request: TrainRequest, rows: list[Row], kind: str) -> list[Row]:
    """The rows; those that a run that goes on has begun with, if others were appended since."""
    if not request.resume:
        return rows
    begun = begun_with(request.folder, rows, kind)
    if more := len(rows) - len(begun):
        log_to_stderr(f"{more} {kind} were added since this run began; it goes on without them.")
    return begun


def _in_rounds(request: TrainRequest, settings: Settings, sources: dict[str, SourceRun]) -> bool:
    from lorarlhf.cli.iterated_options import check_rounds

    return check_rounds(request, settings, sources.get("reward"))


def _round_prompts(
    request: TrainRequest, settings: Settings, base: "BaseFiles", votes: list[Row]
) -> tuple[Any, Row]:
    """What `round_prompts` finds, and the fingerprint of the prompts."""
    from lorarlhf.cli.iterated_options import round_prompts

    assert request.prompts is not None  # `check_rounds` has raised an error
    prompts = _as_begun(request, read_prompts(request.prompts), "prompts")
    return round_prompts(prompts, settings, base, votes), fingerprint(prompts)


def _votes_to_learn(votes: list[Row], held_out: list[Row]) -> list[Row]:
    """The votes for the first round; says how many are left out."""
    from lorarlhf.stages.round_inputs import without_held_out

    kept = without_held_out(votes, held_out)
    if left := len(votes) - len(kept):
        log_to_stderr(
            f"{left} of {len(votes)} rows are on held-out prompts and are not learned from. "
            "Prompts without votes would be held out first: add some."
        )
    return kept


def load(prepared: Prepared) -> "Backbone":
    """The backbone with the roles that the training starts from; loads reward models, too."""
    from lorarlhf.project.load import load_backbone

    request, sources = prepared.request, prepared.sources
    backbone = load_backbone(prepared.settings, prepared.base)
    if "init" in sources:
        backbone.load_role("policy", sources["init"].adapter)
        if request.stage.reference:
            backbone.freeze_reference()
    if "reward" in sources:
        backbone.load_role("reward", sources["reward"].adapter)
        own = prepared.settings.own
        if own.get("reward_pessimism") or own.get("least_gap"):
            from lorarlhf.rewards.deviation import ScoreDeviation, votes_of

            inputs: Any = prepared.inputs
            name = "reward_pessimism" if request.stage.rewarded else "least_gap"
            found = ScoreDeviation.load(votes_of(sources["reward"].adapter), backbone, name)
            (inputs.spec if request.stage.rewarded else inputs).deviation = found
    if request.reward_model:
        from lorarlhf.rewards.classifier import load_classifier
        from lorarlhf.stages.inputs import PPOInputs

        assert isinstance(prepared.inputs, PPOInputs)
        models = [load_classifier(name, backbone.device) for name in request.reward_model]
        prepared.inputs.spec.rewards.extend(models)
    return backbone


def read_stage_rows(stage: Stage, path: str) -> list[Row]:
    """The rows of a file; one that holds votes in a form of its own is read as an import reads it.

    Raises:
        UserError: a bad row, with its line.
    """
    from lorarlhf.preferences.imports import holds_votes

    try:
        return stage.read(path)
    except UserError:  # no stage's own rows: only now is the file read once more
        labels = stage.export == "trl"  # KTO's labels give pairs
        if not stage.export or not holds_votes(path, labels):
            raise
    return _read_votes(stage, path)


def _read_votes(stage: Stage, path: str) -> list[Row]:
    from lorarlhf.preferences.exports import training_rows
    from lorarlhf.preferences.imports import read_votes
    from lorarlhf.preferences.merge import add_votes
    from lorarlhf.preferences.store import Store
    from lorarlhf.preferences.vote_use import carried_along

    found = read_votes(path)
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "votes.sqlite")
        add_votes(store, found.votes)
        votes = store.votes(purpose="train")
        store.close()
    export = training_rows(stage.export, votes)
    also = found.left_out + carried_along(stage.export, votes, stage.strengths)
    log_to_stderr(f"{path}: {export.summary(len(found.votes), stage.name, also)}")
    if found.remarks:
        log_to_stderr(f"{path}: {found.remarked()}.")
    if not export.rows:
        raise UserError(f"{path}: no vote in it gives a row for {stage.name}.{_unjudged(found)}")
    places = (f"{path}, row {n} of those from its votes" for n in itertools.count(1))
    return [FileRow(row, place) for row, place in zip(export.rows, places, strict=False)]


def _unjudged(found: "Import") -> str:
    """What to do with a file whose answers are not judged yet; "" for others."""
    if not found.candidates:
        return ""
    return (
        f" It has {len(found.candidates)} sets of answers that nobody has judged. Add them to a "
        "project with `lorarlhf votes PROJECT --import FILE` and rate them on its Rate page."
    )


def _read_sources(request: TrainRequest) -> dict[str, SourceRun]:
    """By option: the run of the policy to start from, and that of the reward."""
    named = {option: getattr(request, option) for option in SOURCE_ROLES}
    return {
        option: read_source_run(path, SOURCE_ROLES[option], f"--{option}")
        for option, path in named.items()
        if path
    }


def _resolve(
    request: TrainRequest, project: list[SettingValue], sources: dict[str, SourceRun]
) -> Settings:
    return resolve(
        request.stage,
        config=request.settings_file,
        sets=request.sets,
        flags={"base": request.base, "seed": request.seed},
        # The last one counts: a run that goes on has its own; the policy's run counts more than the
        # reward's, and both more than the project.
        inherited=[
            *project,
            *(value for source in reversed(sources.values()) for value in source.settings_values()),
            *request.earlier,
        ],
    )


def _arguments(request: TrainRequest, settings: Settings, own: Any) -> Any:
    """TRL's configuration.

    Raises:
        UserError: TRL's class or PPO's refuses a value, or values that contradict each other.
    """
    from lorarlhf.backbone.devices import compute_dtype_for, find_device
    from lorarlhf.stages.trl.arguments import Placement

    device = find_device(settings.backbone["device"], settings.backbone["bits"])
    dtype = compute_dtype_for(device, settings.backbone["compute_dtype"])
    try:
        placement = Placement(device, dtype, request.folder, settings.seed)
        return request.stage.make_arguments(placement, own)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"The settings of {request.stage.name} don't fit: {reason}.") from error


def _fill_in_rates(
    stage: Stage, settings: Settings, own: Any, args: Any, base: "BaseFiles", rows: Sequence[Row]
) -> None:
    """Choose the learning rates that the settings leave open, so that the record names them."""
    if not stage.rates:
        return
    width = base.config.get_text_config().hidden_size
    for name, rate in stage.fill_in_rates(args, own, width, rows).items():
        settings.own[name] = rate
        setattr(own, name, rate)


def _check_rows(
    request: TrainRequest,
    settings: Settings,
    base: "BaseFiles",
    rows: Any,
    eval_rows: Any,
    rounds: Any = None,
) -> tuple[list[Row], list[Row] | None, "MemoryEstimate | None"]:
    """See that the base can read the rows, and that the training will fit into memory.

    Args:
        rounds: what `round_prompts` has found, if there are rounds of new answers.

    Returns:
        both kinds of rows as the stage takes them, and the estimate.
    """
    from lorarlhf.cli import preflight
    from lorarlhf.cli.row_checks import Length, prepare_rows

    stage = request.stage
    count = len(rows)
    made, longest = prepare_rows(stage, base.encoder, [*rows, *(eval_rows or [])], settings)
    rows, eval_rows = made[:count], None if eval_rows is None else made[count:]
    if rounds is not None:
        longest = Length(*map(max, longest, rounds[2]))
    estimate = preflight.estimate_memory(
        stage,
        settings,
        base,
        longest,
        has_reference=stage.reference and bool(request.init),
        new_adapters=not (request.init or request.reward),
        reward_models=preflight.weights_of(request.reward_model),
    )
    if estimate is None:
        log_to_stderr("Memory: how much this takes can't be estimated before it starts.")
    else:
        free = preflight.free_for_us(base.device)
        if request.memory_check:
            estimate.check(free)
        log_to_stderr(estimate.describe(free))
    return rows, eval_rows, estimate
