"""The reward role from preference pairs: a Bradley-Terry fit first, TRL's `RewardTrainer` on top.

From 50 to 200 votes a freshly trained adapter memorises its pairs and scores others by chance. A
strongly regularised linear fit on the frozen base's pooled hidden states does not: the head starts
from it, and what training the adapter adds is kept only as far as the held-out loss falls.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from lorarlhf.backbone.base import Backbone
from lorarlhf.data.readers import split_by_prompt
from lorarlhf.rewards.axes import style_axes
from lorarlhf.rewards.fit import HeadFit, VoteFit
from lorarlhf.rewards.learning_curve import learning_curve
from lorarlhf.rewards.role import EncodedAnswer, encode_answer, pooled_states, score_encoded
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.run import Run
from lorarlhf.stages.callbacks import RunCallback
from lorarlhf.stages.conversations import conversational
from lorarlhf.stages.trl.arguments import (
    Row,
    batch_arguments,
    only_ours,
    scale_losses,
    trl_arguments,
)
from lorarlhf.stages.trl.checkpointing import can_go_on, resumable, saving
from lorarlhf.stages.trl.even_steps import together
from lorarlhf.stages.trl.oom_retry import careful


@dataclass
class RewardSettings:
    """Settings of the reward stage; `trl` reaches every other field of TRL's `RewardConfig`."""

    pooling: str = "mean"  # over the answer's tokens; "last": the shape other tools know
    epochs: float = 1.0  # of training the adapter on top of the fit; 0: the fit alone
    learning_rate: float = 3e-5
    batch_size: int = 8  # pairs in one optimizer step
    micro_batch_size: int = 4  # pairs in one forward; memory only
    holdout: float = 0.2  # share of the prompts that decides how much training is kept
    evaluations: int = 2  # of the held-out loss, spread over the training
    center_rewards_coefficient: float = 0.0  # pulls scores to 0 (arXiv 2312.09244); 0: off, and
    # the held-out loss is of preferences alone. PPO brings scores to a common scale by itself.
    save_steps: int = 50  # optimizer steps between checkpoints; in code also 0: none
    plain: bool = False  # texts as they are, without the chat template
    trl: dict[str, Any] = field(default_factory=dict)


# Nats a vote. A smaller fall of the held-out loss is luck on a hobbyist's few dozen held-out votes,
# and keeping it would cost more than it brings: the fit that it replaces has seen all votes.
MIN_GAIN = 0.02


@dataclass
class Pair:
    """One preference pair, encoded: answers share the prompt, `group` names it."""

    chosen: EncodedAnswer
    rejected: EncodedAnswer
    group: str
    margin: float = 0.0


class RewardView(nn.Module):
    """The backbone's reward role in the shape that TRL's `RewardTrainer` trains.

    Its forward pools over the answer's tokens, which the collator marks; nothing is copied.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.model, self.head = backbone.model, backbone.heads["reward"]
        self.config: Any = copy.deepcopy(backbone.causal.config)
        self.config.num_labels = 1
        self.__dict__["backbone"] = backbone  # not a module

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        answer_mask: torch.Tensor,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """Ids and masks (B, T) -> logits (B, 1)."""
        backbone = self.__dict__["backbone"]
        trunk = backbone.forward.trunk(input_ids, attention_mask)
        hidden = backbone.forward.hidden(input_ids, attention_mask, trunk)
        return SequenceClassifierOutput(logits=self.head.pool(hidden, answer_mask, trunk)[:, None])

    def add_model_tags(self, tags: Any) -> None:
        """TRL tags models for the hub; this view is never saved."""

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same by the name that older transformers call."""
        self.__dict__["backbone"].causal.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Hand the trainer's wish on to the base."""
        self.__dict__["backbone"].causal.activation_checkpointing_enable(**kwargs)


def train_reward_model(
    backbone: Backbone,
    rows: Sequence[Row],
    run: Run,
    settings: RewardSettings | None = None,
    eval_rows: Sequence[Row] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Learn the reward role from pairs.

    Args:
        backbone: gets the roles `reward` with its head.
        rows: `prompt`, `chosen`, `rejected`, by choice a `margin`.
        run: where metrics go; the role is saved under its adapters/, the kept hidden states and
            the fit in votes.safetensors.
        eval_rows: pairs of other prompts to measure on; without them a share of the prompts is
            held out for that.
        resume: go on at the run's newest checkpoint, where it has one. The fit is made anew.

    Returns:
        a summary: `heldout_accuracy` and `n`, pairs, the fit's cross-validated accuracy, how many
        training steps were kept.
    """
    settings = settings or RewardSettings()
    seed = run.about["seed"]
    if eval_rows is None:
        rows, eval_rows = split_by_prompt(list(rows), settings.holdout, seed)
    if not rows or not eval_rows:
        raise UserError(
            f"A reward role needs pairs of at least two prompts: there are {len(rows)} pairs to "
            f"learn from and {len(eval_rows)} of other prompts to measure on. Rate more answers, "
            "or name pairs to measure on with --eval."
        )
    train = encode_pairs(backbone, rows, settings)
    test = encode_pairs(backbone, eval_rows, settings)
    fit, votes = start_from_fit(backbone, train, settings.pooling)
    if distributed.is_main():
        votes.save(run.folder / "votes.safetensors")
    if not (resume and can_go_on(run.folder)):  # else it is in the log
        _log_learning_curve(backbone, votes, test, run, settings.pooling)
    kept = 0
    if settings.epochs > 0:
        kept = _train_on_top(backbone, train, votes, run, settings, resume)
    set_score_scale(backbone, [answer for pair in train for answer in (pair.chosen, pair.rejected)])
    backbone.save("reward", run.folder / "adapters" / "reward")
    accuracy = pair_accuracy(backbone, test)
    run.log({"step": kept, "heldout_accuracy": accuracy}, stage="reward")
    return {
        "pairs": len(train),
        "heldout_accuracy": accuracy,
        "n": len(test),
        "fit_cv_accuracy": fit.blend.cv_accuracy,
        "adapter_steps_kept": kept,
    }


def encode_pairs(backbone: Backbone, rows: Sequence[Row], settings: RewardSettings) -> list[Pair]:
    """Token ids of both answers of each row, behind the prompt in the policy's own format."""
    made = conversational(rows, backbone, settings.plain)
    return [
        Pair(
            encode_answer(backbone, row["prompt"], row["chosen"], settings.pooling),
            encode_answer(backbone, row["prompt"], row["rejected"], settings.pooling),
            group=repr(row["prompt"]),
            margin=float(row.get("margin") or 0.0),
        )
        for row in made
    ]


def start_from_fit(
    backbone: Backbone, pairs: Sequence[Pair], pooling: str
) -> tuple[HeadFit, VoteFit]:
    """A fresh reward role whose head is the Bradley-Terry fit on the base's hidden states."""
    backbone.add_role("reward", pooling=pooling)
    # The style axes are directions of states averaged over an answer; a last token has none.
    axes = style_axes(backbone)[1] if pooling == "mean" else None
    votes = VoteFit(axes)
    answers = [answer for pair in pairs for answer in (pair.chosen, pair.rejected)]
    states = pooled_states(backbone, answers, pooling)
    for pair, chosen, rejected in zip(pairs, states[::2], states[1::2], strict=True):
        votes.add(chosen, rejected, pair.group)
    fit = votes.fit()
    put_fit(backbone, fit)
    return fit, votes


def _log_learning_curve(
    backbone: Backbone, votes: VoteFit, test: Sequence[Pair], run: Run, pooling: str
) -> None:
    answers = [answer for pair in test for answer in (pair.chosen, pair.rejected)]
    states = pooled_states(backbone, answers, pooling)
    for count, accuracy in learning_curve(votes, states[::2], states[1::2]):
        run.log({"step": count, "heldout_accuracy": accuracy}, stage="reward_curve")


def put_fit(backbone: Backbone, fit: HeadFit) -> None:
    """Write a fit into the reward role's head."""
    head = backbone.heads["reward"]
    head.full_weight = torch.as_tensor(fit.weight, device=head.weight.device)
    # Plain sequence classification, which opens a `last` role, knows no bias.
    head.bias.data.fill_(0.0 if head.pooling == "last" else float(fit.bias))


def set_score_scale(backbone: Backbone, answers: Sequence[EncodedAnswer]) -> None:
    """Keep the mean and deviation of the scores of these (the base's) answers with the head."""
    scores = torch.tensor(score_encoded(backbone, answers), device=backbone.device)
    head = backbone.heads["reward"]
    head.score_mean.fill_(scores.mean().item())
    head.score_std.fill_(max(scores.std(unbiased=False).item(), 1e-6))


def pair_accuracy(backbone: Backbone, pairs: Sequence[Pair]) -> float:
    """Share of pairs whose chosen answer has the higher score; ties count half."""
    scores = score_encoded(backbone, [a for pair in pairs for a in (pair.chosen, pair.rejected)])
    right = [(c > r) + 0.5 * (c == r) for c, r in zip(scores[::2], scores[1::2], strict=True)]
    return sum(right) / len(right)


# ---- training on top


def _train_on_top(
    backbone: Backbone,
    pairs: Sequence[Pair],
    votes: VoteFit,
    run: Run,
    settings: RewardSettings,
    resume: bool,
) -> int:
    """Train adapter and head by TRL; returns the step whose weights were kept (0: the fit).

    The prompts are split once more, so that what decides has been seen neither by the fit that
    the training starts from nor by the training. If nothing is gained, the fit on all pairs stays.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    seen, unseen = split_by_prompt(
        [{"prompt": pair.group, "pair": pair} for pair in pairs],
        settings.holdout,
        run.about["seed"] + 1,
    )
    if not seen or not unseen:
        return 0
    head = backbone.heads["reward"]
    whole_fit = {name: value.clone() for name, value in head.state_dict().items()}
    groups = {row["prompt"] for row in seen}
    part = [place for place, group in enumerate(votes.groups) if group in groups]
    put_fit(backbone, votes.subset(part).fit())
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
    }
    args = trl_arguments(RewardConfig, backbone, run, own, settings.trl)
    keeper = _KeepBest(backbone)
    with backbone.stage("reward"):
        head.requires_grad_(True)
        head.bias.requires_grad_(head.pooling != "last")
        trainer = together(resumable(careful(RewardTrainer)))(
            model=cast(Any, RewardView(backbone)),
            args=args,
            data_collator=_Collator(backbone.pad_id),
            train_dataset=Dataset.from_list([_columns(row["pair"]) for row in seen]),
            eval_dataset=Dataset.from_list([_columns(row["pair"]) for row in unseen]),
            processing_class=backbone.tokenizer,
            callbacks=[RunCallback(run, "reward model", ("loss", "eval_loss"), "reward"), keeper],
        )
        only_ours(trainer)
        scale_losses(trainer)
        backbone.float32_adapters()
        head.float()
        trainer.train(resume)
        head.requires_grad_(False)
    keeper.restore()
    if keeper.best_step == 0:
        head.load_state_dict(whole_fit)
    return keeper.best_step


def _columns(pair: Pair) -> Row:
    return {
        "chosen_ids": pair.chosen.ids,
        "rejected_ids": pair.rejected.ids,
        "chosen_span": [pair.chosen.start, pair.chosen.end],
        "rejected_span": [pair.rejected.start, pair.rejected.end],
        "margin": pair.margin,
    }


class _Collator:
    """Rows of `_columns` -> ids and masks, all chosen answers first, then all rejected ones."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        answers = [
            EncodedAnswer(row[f"{side}_ids"], *row[f"{side}_span"])
            for side in ("chosen", "rejected")
            for row in rows
        ]
        ids, attention, answer_mask = EncodedAnswer.batch(answers, self.pad_id, torch.device("cpu"))
        margin = torch.tensor(
            [row["margin"] for row in rows], dtype=torch.float32, device=ids.device
        )
        masks = {"attention_mask": attention, "answer_mask": answer_mask}
        return {"input_ids": ids, **masks, "margin": margin}


class _KeepBest(TrainerCallback):
    """Keeps a copy of the reward role's weights from where the held-out loss was lowest."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.best_loss, self.best_step = backbone, float("inf"), 0
        self.weights: list[torch.Tensor] = []

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Row | None = None, **kwargs: Any
    ) -> None:
        loss = (metrics or {}).get("eval_loss", float("inf"))
        if loss < self.best_loss - (MIN_GAIN if self.weights else 0.0):
            self.best_loss, self.best_step = loss, state.global_step
            self.weights = [p.detach().clone() for p in self.backbone.parameters_of("reward")]

    def kept(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """For the checkpoint: the best weights, and where they come from."""
        numbers = {"best_loss": self.best_loss, "best_step": self.best_step}
        return {str(n): weight for n, weight in enumerate(self.weights)}, numbers

    def restore_kept(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Back from a checkpoint."""
        own = self.backbone.parameters_of("reward")
        self.weights = [tensors[str(n)].to(p.device) for n, p in enumerate(own)]
        self.best_loss, self.best_step = numbers["best_loss"], numbers["best_step"]

    def restore(self) -> None:
        """Put the best weights back."""
        for weight, best in zip(self.backbone.parameters_of("reward"), self.weights, strict=True):
            weight.data.copy_(best)
