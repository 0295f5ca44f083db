"""The reward role from preference pairs: a Bradley-Terry fit first, TRL's `RewardTrainer` on top.

From 50 to 200 votes a freshly trained adapter overfits its pairs and scores others by chance. A
strongly regularised linear fit on the frozen base's pooled hidden states does not. So the head
starts from the fit, and training the adapter is kept only as far as the held-out loss falls.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import split_by_prompt
from lorarlhf.data.twins import leave_out_shared
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.fit import HeadFit
from lorarlhf.rewards.learning_curve import learning_curve
from lorarlhf.rewards.role import score_encoded
from lorarlhf.rewards.state_cache import cached_states
from lorarlhf.rewards.vote_fit import VoteFit
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.setting_types import NonNegativeFloat, OpenFraction, PositiveInt, one_of
from lorarlhf.runtime.terminal import progress_bar
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.conversations import Row, conversational
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.keep_best import KeepBest
from lorarlhf.stages.reward_examples import write_examples
from lorarlhf.stages.reward_view import (
    Pair,
    PairCollator,
    RewardView,
    answers_of,
    columns,
    encode_pairs,
)
from lorarlhf.stages.trl.arguments import Placement, batch_arguments, trl_arguments
from lorarlhf.stages.trl.checkpointing import has_checkpoint, saving
from lorarlhf.stages.trl.trainer import run_trl_trainer


@dataclass
class RewardSettings:
    """Settings of the reward stage; `trl` reaches every other field of TRL's `RewardConfig`."""

    # "mean" over the answer's tokens, or "last": the shape that other tools know
    pooling: Annotated[str, one_of("mean", "last")] = "mean"
    epochs: NonNegativeFloat = 1.0  # passes that train the adapter on top of the fit; 0: none
    learning_rate: NonNegativeFloat = 3e-5  # step size of that training
    batch_size: PositiveInt = 8  # pairs in one optimizer step
    micro_batch_size: PositiveInt = 4  # pairs in one forward; memory only
    holdout: OpenFraction = 0.2  # share of the prompts that decides how much training is kept
    evaluations: PositiveInt = 2  # how often the held-out loss is measured in the training
    # Pulls scores to 0 (arXiv 2312.09244). 0: off, and the held-out loss is of preferences alone;
    # PPO brings scores to a common scale by itself.
    center_rewards_coefficient: NonNegativeFloat = 0.0
    save_steps: PositiveInt = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    report_to: str = "none"  # trackers that get the metrics too, with commas between them
    trl: dict[str, Any] = field(default_factory=dict)


# Nats a vote. A smaller fall of the held-out loss is luck on a hobbyist's few dozen held-out votes,
# and keeping it would cost more than it brings: the fit that it replaces has seen all votes.
MIN_GAIN = 0.02


def train_reward_model(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    settings: RewardSettings | None = None,
    eval_rows: Sequence[Row] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train the reward role on preference pairs.

    Args:
        backbone: gets the role `reward` with its head.
        rows: `prompt`, `chosen`, `rejected`, and optionally a `margin`.
        run: gets the metrics; the role is saved under its adapters/, the hidden states of the votes
            and the fit in votes.safetensors.
        eval_rows: pairs of other prompts to measure on; without them a share of the prompts is
            held out.
        resume: continue from the run's newest checkpoint, if there is one. The fit is repeated.

    Returns:
        a summary: `heldout_accuracy` and `n`, pairs, the fit's cross-validated accuracy, how many
        training steps were kept.

    Raises:
        UserError: pairs of fewer than two prompts.
    """
    settings = settings or RewardSettings()
    parts = hold_out(list(rows), eval_rows, settings, run.about["seed"])
    train, test = (conversational(part, backbone, settings.plain) for part in parts)
    # The fit alone needs nothing of TRL, whose import takes seconds.
    args = arguments(Placement.of(backbone, run), settings) if settings.epochs > 0 else None
    return run_reward_model(backbone, run, StageInputs(train, settings, args, test, resume))


def hold_out(
    rows: Sequence[Row], eval_rows: Sequence[Row] | None, settings: RewardSettings, seed: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Split pairs into training pairs and held-out pairs of other prompts.

    Raises:
        UserError: there are no pairs for one of the two, or the held-out ones are all learned from.
    """
    if eval_rows is None:
        rows, eval_rows = split_by_prompt(list(rows), settings.holdout, seed)
    else:
        eval_rows = leave_out_shared(rows, eval_rows)
    if not rows or not eval_rows:
        raise UserError(
            f"A reward role needs pairs of at least two prompts: there are {len(rows)} pairs to "
            f"learn from and {len(eval_rows)} of other prompts to measure on. Rate more answers, "
            "or name pairs to measure on with --eval."
        )
    return rows, eval_rows


def arguments(placement: Placement, settings: RewardSettings) -> Any:
    """TRL's `RewardConfig`. Raises a `UserError` or `ValueError` for values it does not take."""
    from trl import RewardConfig

    own = {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        **batch_arguments(settings.batch_size, settings.micro_batch_size),
        "per_device_eval_batch_size": settings.micro_batch_size,
        "center_rewards_coefficient": settings.center_rewards_coefficient or None,
        "eval_strategy": "steps",
        "eval_steps": min(1.0 / max(1, settings.evaluations), 0.999),  # 1.0 would be one step
        "eval_on_start": True,
        "remove_unused_columns": False,
        "max_length": None,
        **saving(settings.save_steps),
        "report_to": settings.report_to,
    }
    return trl_arguments(RewardConfig, placement, own, settings.trl)


def run_reward_model(backbone: Backbone, run: Run, inputs: StageInputs) -> dict[str, Any]:
    """`train_reward_model` from prepared inputs."""
    settings: RewardSettings = inputs.settings
    train = encode_pairs(backbone, inputs.rows, settings.pooling)
    test = encode_pairs(backbone, inputs.eval_rows or [], settings.pooling)
    fit, votes = start_from_fit(backbone, train, settings.pooling)
    if distributed.is_main():
        votes.save(run.folder / "votes.safetensors")
    heldout = _states_of(backbone, test, settings.pooling, "held-out pairs")
    if not (inputs.resume and has_checkpoint(run.folder)):  # else it is in the log
        for count, accuracy in learning_curve(votes, heldout[::2], heldout[1::2]):
            run.log({"step": count, "heldout_accuracy": accuracy}, stage="reward_curve")
    kept = _train_on_top(backbone, train, votes, run, inputs) if settings.epochs > 0 else 0
    if kept:  # by an adapter, which changes the states
        set_score_scale(backbone, score_pairs(backbone, train, "scale of the scores"))
        scores = score_pairs(backbone, test, "accuracy")
    else:
        set_score_scale(backbone, score_states(backbone, train, votes.chosen, votes.rejected))
        scores = score_states(backbone, test, heldout[::2], heldout[1::2])
    accuracy = pair_accuracy(scores)
    if distributed.is_main():
        write_examples(backbone, inputs.eval_rows or [], scores, run.folder)
    backbone.save("reward", run.folder / "adapters" / "reward")
    run.log({"step": kept, "heldout_accuracy": accuracy}, stage="reward")
    return {
        "pairs": len(train),
        "heldout_accuracy": accuracy,
        "n": len(test),
        "fit_cv_accuracy": fit.blend.cv_accuracy,
        "adapter_steps_kept": kept,
    }


def start_from_fit(
    backbone: Backbone, pairs: Sequence[Pair], pooling: str
) -> tuple[HeadFit, VoteFit]:
    """A fresh reward role whose head is the Bradley-Terry fit on the base's hidden states."""
    backbone.add_role("reward", pooling=pooling)
    # The style axes are directions of states averaged over an answer; a last token has none.
    axes = style_axes(backbone)[1] if pooling == "mean" else None
    votes = VoteFit(axes)
    states = _states_of(backbone, pairs, pooling, "hidden states")
    votes.add_all(states[::2], states[1::2], [pair.group for pair in pairs])
    fit = votes.fit()
    put_fit(backbone, fit)
    return fit, votes


def _states_of(backbone: Backbone, pairs: Sequence[Pair], pooling: str, title: str) -> np.ndarray:
    """Pooled states of both answers of each pair, with a bar: chosen, rejected, chosen, ..."""
    answers = answers_of(pairs)
    with progress_bar(title, len(answers)) as advance, backbone.dequantised():
        return cached_states(backbone, answers, pooling, advance)


def put_fit(backbone: Backbone, fit: HeadFit) -> None:
    """Write a fit into the reward role's head."""
    head = backbone.heads["reward"]
    head.full_weight = torch.as_tensor(fit.weight, device=head.weight.device)
    # Plain sequence classification, which opens a `last` role, knows no bias.
    head.bias.data.fill_(0.0 if head.pooling == "last" else float(fit.bias))


def score_pairs(backbone: Backbone, pairs: Sequence[Pair], title: str) -> np.ndarray:
    """Raw scores of the reward role, with a bar: (2N,), chosen, rejected, chosen, ..."""
    answers = answers_of(pairs)
    with progress_bar(title, len(answers)) as advance, backbone.dequantised():
        return np.array(score_encoded(backbone, answers, progress=advance))


def score_states(
    backbone: Backbone, pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray
) -> np.ndarray:
    """`score_pairs` of a role whose adapter changes nothing, from the base's states (N, F)."""
    head = backbone.heads["reward"]
    place = head.weight.device
    counts = [answer.end - answer.start for answer in answers_of(pairs)]
    scores = np.empty(2 * len(pairs))
    for first, states in enumerate((chosen, rejected)):
        on_head = torch.as_tensor(states, device=place)
        found = head.score_pooled(on_head, torch.tensor(counts[first::2], device=place))
        scores[first::2] = found.cpu().numpy()
    return scores


def set_score_scale(backbone: Backbone, scores: np.ndarray) -> None:
    """Keep the mean and deviation of these scores (of the base's answers) with the head."""
    head = backbone.heads["reward"]
    head.score_mean.fill_(float(scores.mean()))
    head.score_std.fill_(max(float(scores.std()), 1e-6))


def pair_accuracy(scores: np.ndarray) -> float:
    """Share of pairs (chosen, rejected, chosen, ...) in the right order; ties count half."""
    chosen, rejected = scores[::2], scores[1::2]
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())


# ---- training on top


def _train_on_top(
    backbone: Backbone, pairs: Sequence[Pair], votes: VoteFit, run: Run, inputs: StageInputs
) -> int:
    """Train adapter and head by TRL; returns the step whose weights were kept (0: the fit).

    The prompts are split once more: the decision is made on pairs that neither the training nor the
    fit that it starts from has seen. If nothing is gained, the fit on all pairs stays.
    """
    from datasets import Dataset
    from trl import RewardTrainer

    seen, unseen = split_by_prompt(
        [{"prompt": pair.group, "pair": pair} for pair in pairs],
        inputs.settings.holdout,
        run.about["seed"] + 1,
    )
    if not seen or not unseen:
        return 0
    head = backbone.heads["reward"]
    fit_on_all = {name: value.clone() for name, value in head.state_dict().items()}
    groups = {row["prompt"] for row in seen}
    part = [place for place, group in enumerate(votes.groups) if group in groups]
    put_fit(backbone, votes.subset(part).fit())
    head.requires_grad_(True)
    head.bias.requires_grad_(head.pooling != "last")
    keeper = KeepBest(backbone, "reward", min_gain=MIN_GAIN)
    try:
        run_trl_trainer(
            RewardTrainer,
            backbone,
            "reward",
            inputs.args,
            resume=inputs.resume,
            model=RewardView(backbone),
            data_collator=PairCollator(backbone.pad_id),
            train_dataset=Dataset.from_list([columns(row["pair"]) for row in seen]),
            eval_dataset=Dataset.from_list([columns(row["pair"]) for row in unseen]),
            callbacks=[RunCallback(run, "reward model", ("loss", "eval_loss"), "reward"), keeper],
        )
    finally:
        head.requires_grad_(False)
    keeper.restore()
    if keeper.best_step == 0:
        head.load_state_dict(fit_on_all)
    return keeper.best_step
