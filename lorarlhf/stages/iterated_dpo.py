"""DPO in rounds: the policy answers, the reward role picks the best and the worst, DPO learns.

Each round starts from the policy of the round before, which is also its reference, as in iterative
DPO (Xu et al. 2023, arXiv 2312.16682). No person is asked: the votes are learned from in the first
round, and through the reward role in all of them.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from lorarlhf.backbone.base import Backbone
from lorarlhf.backbone.generation import Completion, encode_prompts, generate_encoded
from lorarlhf.ppo.divergence import sampled_kl
from lorarlhf.ppo.prompts import PromptOrder
from lorarlhf.rewards.deviation import ScoreDeviation, score_with_vectors
from lorarlhf.rewards.role import score_answers
from lorarlhf.runtime import checkpoints
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_json
from lorarlhf.runtime.interrupt import stopping_what_follows
from lorarlhf.runtime.run import Run
from lorarlhf.runtime.run_folder import drop_later_rows
from lorarlhf.runtime.terminal import progress_bar
from lorarlhf.stages.callbacks import log_beside_bars, trained_seconds
from lorarlhf.stages.conversations import Row, conversational, prompt_conversations
from lorarlhf.stages.dpo_orpo import dpo_arguments, run_dpo
from lorarlhf.stages.inputs import StageInputs
from lorarlhf.stages.round_alarms import round_alarms
from lorarlhf.stages.round_inputs import (
    IteratedDPOSettings,
    Labels,
    RoundInputs,
    as_pair,
    keep_labels,
    kept_labels,
    pair_up,
    split_prompts,
    with_same_columns,
    without_held_out,
)
from lorarlhf.stages.trl.arguments import Placement

BATCH_SIZE = 32
"""Answers that are sampled together."""


def run_dpo_rounds(backbone: Backbone, run: Run, inputs: StageInputs) -> Row:
    """DPO from prepared inputs: on the pairs alone, or in rounds."""
    if not isinstance(inputs, RoundInputs):
        return run_dpo(backbone, run, inputs)
    return _Rounds(backbone, run, inputs).run()


def train_iterated_dpo(
    backbone: Backbone,
    votes: Sequence[Row],
    prompts: Sequence[Row],
    run: Run,
    settings: IteratedDPOSettings | None = None,
    deviation: ScoreDeviation | None = None,
    resume: bool = False,
) -> Row:
    """Train the policy in rounds, on its own answers that the reward role labels.

    Args:
        backbone: its policy is trained; its reward role labels.
        votes: pairs for the first round (`prompt`, `chosen`, `rejected`); there may be none.
        prompts: rows with a `prompt`. A quarter of them, at most 32, is held out to measure on.
        run: gets the metrics; the policy of the best round is saved under its adapters/.
        settings: by default three rounds.
        deviation: of the reward role's scores; without it, `least_gap` leaves out nothing.
        resume: continue after the last finished round, if there is one.

    Returns:
        a summary: rounds, the best one, pairs, held-out scores, the `alarms` that are on.

    Raises:
        UserError: there are fewer than eight prompts, no rounds, or one answer to a prompt.
    """
    settings = settings or IteratedDPOSettings(rounds=3)
    if settings.rounds < 1 or settings.num_generations < 2:
        raise UserError("Iterated DPO needs rounds of 1 or more and num_generations of 2 or more.")
    asked = prompt_conversations(prompts, settings.plain)
    learned, held_out = split_prompts(asked, int(run.about["seed"]), votes)
    kept = without_held_out(votes, held_out)
    inputs = RoundInputs(
        conversational(kept, backbone, settings.plain),
        settings,
        dpo_arguments(Placement.of(backbone, run), settings),
        resume=resume,
        prompts=learned,
        held_out=held_out,
        votes_left_out=len(votes) - len(kept),
        deviation=deviation,
    )
    return _Rounds(backbone, run, inputs).run()


class _Rounds:
    """The rounds of a run, with their figures (`rows`, of which the first are the start's)."""

    def __init__(self, backbone: Backbone, run: Run, inputs: RoundInputs) -> None:
        self.backbone, self.run_record, self.inputs = backbone, run, inputs
        self.settings: IteratedDPOSettings = inputs.settings
        self.folder = run.folder
        self.seed = int(run.about["seed"])
        self.rows: list[Row] = []
        self.alarms: set[str] = set()
        self.began = 0.0  # when the running round would have begun without a stop

    def run(self) -> Row:
        """All rounds, or those that are left; returns the summary."""
        if not (self.inputs.resume and self._load()):
            self._start()
        reason = self._reason_to_stop()
        while not reason:
            self._finish(self._round(len(self.rows)))
            reason = self._reason_to_stop()
        log_beside_bars(reason)
        return self._summary(reason)

    # ---- the parts

    def _start(self) -> None:
        """Keep the policy and its reference as they are, and measure the policy."""
        for role in ("policy", "reference"):
            if self.backbone.has(role):
                self.backbone.save(role, self.folder / "adapters" / role)
        if not self.backbone.has("reference"):  # an earlier run may have left one there
            shutil.rmtree(self.folder / "adapters" / "reference", ignore_errors=True)
        self._finish({"step": 0} | self._measure())

    def _round(self, number: int) -> Row:
        self.began = time.monotonic()
        folder = self.folder / "rounds" / str(number)
        labels = self._labels(number, folder)
        pairs = [as_pair(self.inputs.prompts[row["row"]]["prompt"], row) for row in labels.pairs]
        left = "; ".join(f"{count} {why}" for why, count in labels.left_out.items())
        asked = len(pairs) + labels.left_out.total()
        log_beside_bars(
            f"Round {number}: {len(pairs)} pairs from {asked} prompts."
            + (f" Left out: {left}." if left else "")
        )
        if number == 1:
            pairs += [dict(row) for row in self.inputs.rows]
        row: Row = {"step": number, "score": labels.score, "pairs": len(labels.pairs)}
        row["left_out"] = dict(labels.left_out)
        if pairs:
            row |= self._learn(number, folder, with_same_columns(pairs))
        row |= self._measure()
        row["seconds"] = time.monotonic() - self.began
        return row

    def _labels(self, number: int, folder: Path) -> Labels:
        """The labelled pairs of a round: those that a stopped run has kept, or new ones."""
        file = folder / "pairs.jsonl"
        if self.inputs.resume and file.exists():
            kept = kept_labels(file, self.inputs.prompts)
            self.began -= kept.seconds
            return kept
        order, settings = PromptOrder(len(self.inputs.prompts), self.seed), self.settings
        wanted = min(settings.round_prompts, len(self.inputs.prompts))
        for _ in range(number):  # those of the earlier rounds first
            chosen = order.take(wanted)
        asked = [row for row in chosen for _ in range(settings.num_generations)]
        prompts = [self.inputs.prompts[row]["prompt"] for row in asked]
        answers, _ = self._answers(prompts, f"round {number}: answers", self.seed + number)
        texts = [answer.text for answer in answers]
        scores, vectors = self._scores(prompts, texts)

        def doubt(one: int, other: int) -> float:
            return 0.0 if vectors is None else float((vectors[one] - vectors[other]).norm())

        ended = [answer.ended for answer in answers]
        labels = pair_up(asked, texts, scores, doubt, settings, ended)
        labels.seconds = time.monotonic() - self.began
        return keep_labels(file, labels, self.inputs.prompts)

    def _learn(self, number: int, folder: Path, pairs: list[Row]) -> Row:
        """DPO on the pairs of a round, from the policy that the last one has left."""
        total, minutes = self.run_record, None
        if total.minutes is not None:
            spent = self._trained() + time.monotonic() - self.began
            minutes = max(total.minutes - spent / 60, 0.0)
        resume = self.inputs.resume and (folder / "metrics.jsonl").exists()
        inner = Run(folder, "dpo", total.about["config"], minutes)
        inner.base(self.backbone)
        if resume:
            drop_later_rows(folder, "dpo")
            self.began -= trained_seconds(inner)  # which its callback counts, too
        args = dpo_arguments(Placement.of(self.backbone, inner), self.settings)
        name = self.settings.trl.get("run_name") or self.folder.resolve().name
        args.run_name = f"{name}-round-{number}"  # each round is a run of its own in a tracker
        settings = replace(self.settings, evaluations=0)  # the rounds are measured themselves
        part = StageInputs(pairs, settings, args, resume=resume)
        with stopping_what_follows():
            found = run_dpo(self.backbone, inner, part)
        inner.finish("done", found)
        self._restore_reference()
        return {"loss": found["loss_last"]} if "loss_last" in found else {}

    def _measure(self) -> Row:
        """The policy's figures on the held-out prompts, always with the same seeds."""
        prompts = [row["prompt"] for row in self.inputs.held_out]
        answers, encoded = self._answers(prompts, "held-out answers", self.seed)
        scores = score_answers(self.backbone, prompts, [answer.text for answer in answers])
        found = {
            "eval_score": fmean(scores),
            "eval_length": fmean(len(answer.ids) for answer in answers),
            "eval_ended": fmean(float(answer.ended) for answer in answers),
        }
        if len(scores) > 1:
            found["eval_score_std"] = stdev(scores)
        try:
            gaps = sampled_kl(self.backbone, encoded, answers, self.settings.temperature)
        except UserError:  # a family that scales its logits in a way of its own
            return found
        return found | {"eval_kl": fmean(gaps)}

    def _answers(
        self, prompts: list[Any], title: str, seed: int
    ) -> tuple[list[Completion], list[list[int]]]:
        """The policy's answers, and the prompts as token ids."""
        settings = self.settings
        encoded = encode_prompts(self.backbone, prompts, settings.max_prompt_tokens)
        done = 0
        with progress_bar(title, len(prompts)) as advance, self.backbone.role("policy"):

            def progress(now: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            found = generate_encoded(
                self.backbone,
                encoded,
                max_new_tokens=settings.max_new_tokens,
                temperature=settings.temperature,
                batch_size=BATCH_SIZE,
                seed=seed,
                progress=progress,
            )
        return found, encoded

    def _scores(
        self, prompts: list[Any], texts: list[str]
    ) -> tuple[list[float], torch.Tensor | None]:
        """Scores of the reward role; vectors whose differences' lengths are its doubt, if asked."""
        if self.inputs.deviation is None:
            return score_answers(self.backbone, prompts, texts), None
        return score_with_vectors(self.backbone, prompts, texts, self.inputs.deviation)

    def _restore_reference(self) -> None:
        """Bring back the reference of the whole run; TRL has made the round's own one."""
        if self.backbone.has("reference"):
            self.backbone.model.delete_adapter("ref")
        kept = self.folder / "adapters" / "reference"
        if kept.is_dir():
            self.backbone.load_role("reference", kept)

    # ---- the end of a round

    def _finish(self, row: Row) -> None:
        """Log a round; keep a checkpoint, and its policy if it is the best."""
        self.rows.append(row)
        self.run_record.about["trained_seconds"] = round(self._trained(), 1)
        self.run_record.log(row)
        number = len(self.rows) - 1
        log_beside_bars(
            f"Round {number}: held-out score {row['eval_score']:.3g}, "
            f"{row['eval_length']:.0f} tokens an answer."
        )
        for name, (value, words) in round_alarms(self.rows).items():
            if name not in self.alarms:
                log_beside_bars(f"Round {number}, {name}: {words}")
                self.run_record.log({"step": number, "alarm": name, "value": value, "words": words})
            self.alarms.add(name)
        target = self.folder / "checkpoints" / f"{checkpoints.PREFIX}{number}"
        scratch = checkpoints.make_scratch(target)
        self.backbone.save("policy", scratch / "policy")
        write_json(scratch / "rounds.json", {"rows": self.rows, "alarms": sorted(self.alarms)})
        checkpoints.publish(scratch, target)
        checkpoints.keep_newest(target.parent, 2)
        self._keep_if_best()

    def _load(self) -> bool:
        """Go on after the last finished round; False if there is none."""
        place = checkpoints.newest_intact(self.folder / "checkpoints")
        if place is None:
            return False
        kept = json.loads((place / "rounds.json").read_text(encoding="utf-8"))
        self.rows, self.alarms = kept["rows"], set(kept["alarms"])
        self.backbone.load_role("policy", place / "policy")
        self._keep_if_best()  # a kill may have come in between
        self._restore_reference()
        return True

    def _keep_if_best(self) -> None:
        """Save the policy as the run's result if no earlier round is better."""
        number = len(self.rows) - 1
        if number and self._best() == number:
            self.backbone.save("policy", self.folder / "adapters" / "policy")

    def _best(self) -> int:
        """The round with the highest held-out score; 0 is the start."""
        return max(range(len(self.rows)), key=lambda number: self.rows[number]["eval_score"])

    def _trained(self) -> float:
        """Seconds of all rounds so far."""
        return sum(float(row.get("seconds", 0.0)) for row in self.rows)

    def _reason_to_stop(self) -> str:
        """Why no round follows; "" if one does."""
        done, minutes = len(self.rows) - 1, self.run_record.minutes
        if done and self._best() != done:
            return f"Round {done} did not raise the held-out score: the best policy is kept."
        if done >= self.settings.rounds:
            return f"All {done} rounds are done."
        if minutes is not None and self._trained() >= 60 * minutes:
            return f"The {minutes:g} minutes of training are over after round {done}."
        return ""

    def _summary(self, reason: str) -> Row:
        best = self._best()
        left_out = sum((Counter[str](row.get("left_out", {})) for row in self.rows), Counter[str]())
        self.backbone.load_role("policy", self.folder / "adapters" / "policy")
        found = {
            "rounds": len(self.rows) - 1,
            "best_round": best,
            "votes": len(self.inputs.rows),
            "votes_left_out": self.inputs.votes_left_out,
            "pairs": sum(row.get("pairs", 0) for row in self.rows),
            "left_out": dict(left_out),
            "score_first": self.rows[0]["eval_score"],
            "score_best": self.rows[best]["eval_score"],
            "alarms": sorted(self.alarms),
            "ended": reason,
        }
        kl = self.rows[best].get("eval_kl")
        return found if kl is None else found | {"kl_per_sequence": kl}
