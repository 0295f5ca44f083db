"""The card of a round: what changed, how sure that is, and whether to keep it.

Everything comes from plain values, as `round.json` holds them. A rate is compared with one half, a
difference with 0; what is larger than chance has an interval that does not contain it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorarlhf.evaluation.agreement import TIE, verdict_on
from lorarlhf.evaluation.candidates import BASE
from lorarlhf.evaluation.eval_results import SURE, kl_text, rate_text
from lorarlhf.evaluation.report_format import duration, text
from lorarlhf.evaluation.report_template import PAGE
from lorarlhf.evaluation.skills import SkillChange
from lorarlhf.evaluation.win_rate import win_rate
from lorarlhf.preferences.blind_comparisons import finished_votes
from lorarlhf.preferences.store import Store

Row = dict[str, Any]
KEEP, DROP, LOOK = "keep", "drop", "look"


@dataclass(frozen=True)
class Advice:
    """What to do with a round.

    Attributes:
        action: `keep`, `drop`, or `look` where a person has to decide.
        sure: whether a judge that the policy was not trained with decides it beyond chance.
        text: the advice with its reason, in sentences.
    """

    action: str
    sure: bool
    text: str


# ---- from eval to the record


def measured(
    data: Mapping[str, Any], new: str, previous: str, changes: Mapping[str, Sequence[SkillChange]]
) -> Row:
    """What `eval` says of a new policy and the one before it, as far as the card needs it.

    Args:
        data: the results of `eval`.
        new, previous: their names in it; `previous` may be `base`.
        changes: of the short tasks, from `previous` and from `base`.
    """
    figures = {one["name"]: one for one in data["candidates"]}
    names = ("kl", "kl_se", "kl_bound", "length", "ended")
    judges = [_judged(judge, new, previous) for judge in data["judges"]]
    return {
        "policy": {name: figures[new][name] for name in names},
        "previous": {name: figures[previous][name] for name in names},
        "judges": [judge for judge in judges if judge["base"] is not None],
        "tasks": {
            name: asdict(some[-1]) | {"change": some[-1].change} for name, some in changes.items()
        },
    }


def _judged(judge: Mapping[str, Any], new: str, previous: str) -> Row:
    """One judge's win rate against the base, and how much more often `new` wins than `previous`.

    Where that is the base, it is the distance of the rate from one half.
    """
    found = {one["candidate"]: one for one in judge["results"]}
    gap = None
    for pair in judge["between"]:
        names = (pair["candidate"], pair["other"])
        if sorted(names) == sorted((new, previous)):
            sign = 1 if names[0] == new else -1
            ends = sorted(sign * end for end in pair["ci95"])
            gap = {"difference": sign * pair["difference"], "ci95": ends}
    rate = found.get(new)
    if rate is not None and previous == BASE:
        ends = [end - 0.5 for end in rate["ci95"]]
        gap = {"difference": rate["rate"] - 0.5, "ci95": ends}
    return {
        "judge": judge["judge"],
        "independent": judge["independent"],
        "base": rate and {name: rate[name] for name in ("rate", "ci95", "n")},
        "previous": gap,
    }


def blind_votes(store: Store, first: str, second: str) -> Row | None:
    """The win rate of the second model by the votes of blind comparisons with the first.

    Votes of a comparison that its rater has not finished are left out, as on the Compare page.

    Returns:
        as `WinRate.to_dict`; None without votes.
    """
    outcomes, groups = [], []
    for vote in finished_votes(store, purpose="compare")[0]:
        verdict = verdict_on(vote)
        if verdict is not None and set(vote.sources) == {first, second}:
            ours = vote.sources.index(second)
            outcomes.append(0 if verdict == TIE else 1 if verdict == ours else -1)
            groups.append(str(vote.prompt))
    return win_rate(outcomes, groups).to_dict() if outcomes else None


# ---- advice


def advice(result: Mapping[str, Any], people: Mapping[str, Any] | None = None) -> Advice:
    """Keep or drop, and how sure that is.

    Judges that are not independent never decide alone for keeping: a policy can learn to exploit
    the reward role that it was trained with.

    Args:
        people: of `blind_votes`.
    """
    sides = [(_side(judge), judge) for judge in result["judges"]]
    better = [judge["judge"] for side, judge in sides if side > 0 and judge["independent"]]
    worse = [judge["judge"] for side, judge in sides if side < 0 and judge["independent"]]
    if people is not None:
        low, high = people["ci95"]
        better += ["your blind votes"] * (low > 0.5)
        worse += ["your blind votes"] * (high < 0.5)
    forgot = _forgot(result)
    if worse and better:
        return Advice(
            LOOK,
            False,
            f"The judges disagree: better by {_listed(better)}, worse by {_listed(worse)}. Read "
            "some answers before you decide.",
        )
    if worse:
        return Advice(DROP, True, f"Drop it. It is worse, beyond chance: {_listed(worse)}.")
    if better and forgot:
        return Advice(
            LOOK,
            False,
            f"It is better, beyond chance: {_listed(better)}. But it fails more of the short tasks "
            "than before. Decide what counts more.",
        )
    if better:
        return Advice(KEEP, True, f"Keep it. It is better, beyond chance: {_listed(better)}.")
    return _unsure(any(side > 0 for side, _ in sides), forgot, people)


def _unsure(claimed: bool, forgot: bool, people: Mapping[str, Any] | None) -> Advice:
    """No independent judge finds a difference.

    Args:
        claimed: whether a judge that is not independent says that it is better.
    """
    if forgot:
        return Advice(
            DROP,
            False,
            "Rather drop it. It fails more of the short tasks than before, and no independent "
            "judge finds it better.",
        )
    if not claimed:
        return Advice(
            DROP,
            False,
            "Rather drop it. No judge finds a difference that is larger than chance, so little is "
            "lost.",
        )
    asked = "Nobody has compared the answers yet: vote on the Compare page"
    if people is not None:
        asked = f"Your {people['n']} blind votes do not settle it: read some answers"
    return Advice(
        LOOK,
        False,
        "Not sure. Only the reward role that it was trained with finds it better, and a policy can "
        f"learn to exploit that. {asked} before you decide.",
    )


def _side(judge: Mapping[str, Any]) -> int:
    """+1 if the new policy is better than the one before, beyond chance; -1 if worse; else 0."""
    if judge["previous"] is None:
        return 0
    low, high = judge["previous"]["ci95"]
    return (low > 0) - (high < 0)


def _forgot(result: Mapping[str, Any]) -> bool:
    """Whether more tasks fail than with the policy before, beyond chance."""
    change = result["tasks"].get("previous")
    return change is not None and change["change"] < 0 and change["p"] < SURE


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


# ---- in words


def card_lines(about: Mapping[str, Any], people: Row | None = None) -> list[tuple[str, str]]:
    """What changed, as names and texts, from a finished round's record.

    Args:
        people: of `blind_votes`.
    """
    result, votes = about["result"], about["votes"]
    before = previous_name(about["parents"])
    lines = [("Votes", f"{votes['count']:,}, of which {votes['new']:,} are new")]
    if reward := result["reward"]:
        lines.append(("Reward role", f"predicts {_share(reward)}. {reward['advice']}"))
    lines += [(f"By {judge['judge']}", _judge_text(judge, before)) for judge in result["judges"]]
    lines.append(("By people", _people_text(people, result["comparison"], before)))
    lines += _figures(result, before)
    if result["alarms"]:
        lines.append(("Alarms", f"{_listed(result['alarms'])} at the end of the training"))
    return [*lines, ("Time", duration(result["seconds"]))]


def previous_name(parents: Mapping[str, Any]) -> str:
    """What a round started from, in words."""
    if parents["round"] is not None:
        return f"round {parents['round']}"
    return str(parents["policy"] or "the base").removeprefix("runs/")


def _share(reward: Mapping[str, Any]) -> str:
    rate = f"{reward['accuracy']:.0%} ({100 * reward['low']:.0f} to {reward['high']:.0%})"
    return f"{rate} of {reward['of']:,} votes, each by a fit to votes on other prompts"


def _judge_text(judge: Mapping[str, Any], before: str) -> str:
    words = f"wins {rate_text(judge['base'])} against the base"
    gap = judge["previous"]
    if gap is not None and before != "the base":
        words += f", {_points(gap['difference'], *gap['ci95'])} compared with {before}"
    return words if judge["independent"] else f"{words}; not independent"


def _people_text(people: Row | None, comparison: Mapping[str, Any], before: str) -> str:
    if people is not None:
        return f"wins {rate_text(people)} of {people['n']} blind votes against {before}"
    return f"no votes yet; {comparison['items']} pairs are ready on the Compare page"


def _figures(result: Mapping[str, Any], before: str) -> list[tuple[str, str]]:
    new, old = result["policy"], result["previous"]
    lines = [("KL from the base", f"{kl_text(new)} nats an answer")]
    if before != "the base":
        lines[0] = ("KL from the base", f"{kl_text(new)} nats an answer; {before}: {kl_text(old)}")
    lines.append(("Length", f"{new['length']:.0f} tokens; {before}: {old['length']:.0f}"))
    for name, change in result["tasks"].items():
        if name == "base" and before == "the base":
            continue
        than = before if name == "previous" else "the base"
        lines.append(("Short tasks", _tasks_text(change, than)))
    return lines


def _tasks_text(change: Mapping[str, Any], than: str) -> str:
    interval = _points(change["change"], change["low"], change["high"])
    if change["p"] >= SURE:
        sure = "no change larger than chance"
    else:
        sure = "it does more of them" if change["change"] > 0 else "it has forgotten something"
    return f"{change['after']} of {change['tasks']} done, {interval} compared with {than}: {sure}"


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.0f} points ({100 * low:+.0f} to {100 * high:+.0f})"


def card_title(about: Mapping[str, Any]) -> str:
    """The headline: which round it is, and what was decided."""
    decided = "" if about["verdict"] == "undecided" else f", {about['verdict']}"
    start = previous_name(about["parents"])
    return f"Round {about['number']}: {about['method']}, from {start}{decided}"


def card_text(about: Mapping[str, Any], people: Row | None = None) -> str:
    """The card for the terminal."""
    lines = card_lines(about, people)
    width = max(len(name) for name, _ in lines)
    body = [f"  {name:{width}}  {words}" for name, words in lines]
    return "\n".join([card_title(about), *body, "", advice(about["result"], people).text])


def card_page(about: Mapping[str, Any], people: Row | None = None) -> str:
    """The card as a self-contained HTML page; every text is escaped."""
    rows = "\n".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(words)}</td></tr>'
        for name, words in card_lines(about, people)
    )
    report = '<p><a href="eval/report.html">The answers side by side, and all figures</a></p>'
    return PAGE.substitute(
        title=text(card_title(about)),
        style="",
        lead=text(advice(about["result"], people).text),
        sections=f"<table><tbody>\n{rows}\n</tbody></table>\n{report}",
    )
