"""The report's title, and the result of a run in one sentence. Both are plain text, not escaped."""

import re
from collections.abc import Mapping
from typing import Any

from lorarlhf.evaluation.report_format import (
    duration,
    interval,
    number,
    of_stage,
    part,
    share,
    show,
)

Row = Mapping[str, Any]


def stage_label(stage: str) -> str:
    """The name of a stage or algorithm for readers: DITTO and up to four letters in capitals."""
    short = len(stage) <= 4 and stage != "demo"
    return stage.upper() if short or stage == "ditto" else stage.replace("_", " ")


def title(summary: Row, run: Row) -> str:
    """The stage and the base, such as `DPO run on smollm2-135m`."""
    base = str(summary.get("base") or run.get("base") or "").rstrip("/\\")
    base = re.split(r"[/\\]", base)[-1]
    stage = str(summary.get("algorithm") or run.get("stage") or "demo")
    kind = "RLHF demo" if stage == "demo" else f"{stage_label(stage)} run"
    return _capitalised(f"{kind} on {base}" if base else kind)


def headline(summary: Row, run: Row) -> str:
    """The result of a run in one sentence: its best-known figure, or else its status."""
    ppo, reward = of_stage(summary, "ppo"), of_stage(summary, "reward_model")
    label = stage_label(str(ppo.get("algorithm") or "ppo"))
    updates = f"After {show(ppo['updates'])} updates of {label}, " if "updates" in ppo else ""
    if number(part(summary, "win_rate").get("rate")) is not None:
        sentence = updates + _wins(part(summary, "win_rate"))
    elif number(summary.get("score_best")) is not None:
        sentence = _rounds(summary)
    elif number(ppo.get("kl_per_sequence")) is not None:
        kl = show(ppo["kl_per_sequence"])
        sentence = f"{updates}the KL of the policy from its reference is {kl} nats per answer."
    elif number(reward.get("heldout_accuracy")) is not None:
        of = f"{show(reward['n'])} " if "n" in reward else ""
        right = share(reward["heldout_accuracy"])
        sentence = f"The reward role orders {right} of {of}held-out pairs as the rater does."
    elif number(summary.get("loss_last")) is not None:
        sentence = _learned(summary, str(run.get("stage") or "training"))
    else:
        took = duration(run.get("seconds"))
        sentence = f"This run's status is “{run.get('status', 'unknown')}”"
        sentence += "." if took == "–" else f" after {took}."
    return _capitalised(sentence)


def _wins(win_rate: Row) -> str:
    sentence = f"held-out answers won {share(win_rate['rate'])} of comparisons against the base"
    span = interval(win_rate.get("ci95"))
    if not span:
        return sentence + "."
    low, high = win_rate["ci95"]
    meaning = "better than chance" if low > 0.5 else "worse than chance"
    if low <= 0.5 <= high:
        meaning = "which may still be chance"
    return f"{sentence} (95% interval {span}), {meaning}."


def _rounds(summary: Row) -> str:
    """How the held-out score changed over rounds of DPO, and which round was kept."""
    best, first = show(summary["score_best"]), show(summary["score_first"])
    done, kept = summary["rounds"], summary["best_round"]
    start = f"After {show(done)} round{'' if done == 1 else 's'} of DPO on new answers, "
    if not kept:
        return f"{start}the held-out score is not above the {first} of the start, which is kept."
    return f"{start}the held-out score went from {first} to {best}, that of round {show(kept)}."


def _learned(summary: Row, stage: str) -> str:
    """What a stage learned: the share of pairs ordered right, or KTO's margin; and its loss."""
    steps = f"{show(summary['steps'])} steps of " if "steps" in summary else ""
    rows = f" on {show(summary['rows'])} rows" if "rows" in summary else ""
    loss = f"the loss is {show(summary['loss_last'])}"
    if number(summary.get("loss_first")) is not None:
        loss = f"the loss went from {show(summary['loss_first'])} to {show(summary['loss_last'])}"
    start = f"After {steps}{stage_label(stage)}{rows}, "
    if number(summary.get("accuracy_last")) is not None:
        right = share(summary["accuracy_last"])
        learned = f"the policy orders {right} of the last pairs right (guessing: 50%)"
        return f"{start}{learned}, and {loss}."
    if number(summary.get("margin_last")) is not None:
        margin = show(summary["margin_last"])
        learned = f"good answers have an implied reward {margin} above bad ones (at the start: 0)"
        return f"{start}{learned}, and {loss}."
    return f"{start}{loss}."


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
