"""How a policy did, for its card: win rates, what was forgotten, alarms, limits."""

from collections.abc import Sequence

from lorarlhf.evaluation.eval_results import SURE
from lorarlhf.evaluation.judges import PEOPLE
from lorarlhf.evaluation.report_format import number, part
from lorarlhf.evaluation.skills import ALL
from lorarlhf.export.cards.markdown import code, many, percent, plain, table
from lorarlhf.export.cards.result_facts import THE_BASE, Skill, Win, kl_of, skills_of, wins_of
from lorarlhf.export.cards.run_facts import RunFacts


def results(facts: RunFacts) -> str:
    """A table of all win rates on record, and what it means."""
    wins, kl = wins_of(facts), kl_of(facts)
    apart = f"The policy is {kl}." if kl else ""
    if not wins:
        if not facts.record:
            return ""
        nothing = "No comparison with the base is on record, so it is not known."
        return f"{nothing} {apart}".strip()
    rows = [
        (
            plain(win.judge),
            plain(win.against),
            percent(win.rate, win.low, win.high),
            f"{win.count:,}",
            win.equal_length or "-",
            "yes" if win.independent else "no",
        )
        for win in wins
    ]
    head = ("judge", "against", "wins (95% interval)", "of", "at equal length", "independent")
    lines = [table(head, rows), _NOTE if any(not w.independent for w in wins) else "", apart]
    return "\n\n".join(line for line in ["Ties count as half.", *lines] if line)


_NOTE = (
    "A judge that is not independent took part in the training, or its opinion did: a policy can "
    "learn to exploit it."
)


def forgetting(facts: RunFacts) -> str:
    """The short tasks before and after, by kind; says so where nobody has asked them."""
    skills = skills_of(facts)
    if not skills:
        if not facts.record:
            return ""
        return "Not measured: no result of the short tasks of `lorarlhf eval` is on record."
    rows = [
        (
            "all" if one.kind == ALL else plain(one.kind),
            f"{one.tasks}",
            f"{one.before}",
            f"{one.after}",
            f"{100 * one.low:+.0f} to {100 * one.high:+.0f} points",
        )
        for one in skills
    ]
    head = ("tasks", "of", "done by the base", "done by this policy", "change (95% interval)")
    whole = next((one for one in skills if one.kind == ALL), skills[-1])
    return f"{table(head, rows)}\n\n{_change(whole)}"


def _change(whole: Skill) -> str:
    if whole.chance >= SURE:
        return "No change that is larger than chance."
    if whole.after < whole.before:
        return "It has forgotten something: it fails more tasks than by chance."
    return "It does more of these tasks than the base."


def alarms(lineage: Sequence[RunFacts]) -> str:
    """The alarms that the health checks raised, run by run."""
    rows = [
        (
            code(facts.name),
            plain(str(row["alarm"]).replace("_", " ")),
            f"{row['step']}" if number(row.get("step")) is not None else "-",
            "yes" if row["active"] else "no",
            plain(row.get("words") or "-"),
        )
        for facts in lineage
        for row in facts.alarms()
    ]
    if rows:
        return table(("run", "alarm", "last at step", "on at the end", "what it says"), rows)
    watched = [code(facts.name) for facts in lineage if facts.watched]
    return f"The health checks of {', '.join(watched)} raised no alarm." if watched else ""


# ---- limits


def limits(lineage: Sequence[RunFacts]) -> list[str]:
    """What to know before using it: only what files say, or that no file says it."""
    facts = lineage[-1]
    found = [_not_done(facts), _judged(wins_of(facts), facts), *_taste(lineage), _answers(facts)]
    found.append(
        "Truth, safety and languages other than that of the prompts were not measured. The base's "
        "own limits apply."
    )
    return [sentence for sentence in found if sentence]


def _not_done(facts: RunFacts) -> str:
    status = facts.record.get("status")
    if not facts.record:
        return "No record of its training was found, so nothing is known about its quality."
    return "" if status == "done" else f"The run is not finished; its status is {plain(status)}."


def _judged(wins: Sequence[Win], facts: RunFacts) -> str:
    if not facts.record:
        return ""
    sure = [win for win in wins if win.independent and win.against == THE_BASE]
    if not wins:
        return "Nobody has compared its answers with the base's."
    if not sure:
        return "No independent judge has compared its answers with the base's."
    most = max(win.count for win in sure)
    people = "" if any(win.judge == PEOPLE for win in sure) else ", and no person was asked"
    return f"The win rates are from at most {many(most, 'comparison')} a judge{people}."


def _taste(lineage: Sequence[RunFacts]) -> list[str]:
    """Whose taste it learned, and how well its reward role knows it."""
    found = []
    for facts in lineage:
        if facts.stage == "demo":
            found.append("Its taste is that of a simulated rater: a rule, and no person's.")
        reward = part(facts.summary, "reward_model") or facts.summary
        accuracy, count = number(reward.get("heldout_accuracy")), reward.get("n")
        if accuracy is not None:
            of = f" {count:,}" if isinstance(count, int) else ""
            role = f"The reward role of {code(facts.name)}"
            found.append(f"{role} orders {accuracy:.0%} of{of} held-out pairs right.")
    return found


def _answers(facts: RunFacts) -> str:
    longest = facts.settings().get("max_new_tokens")
    if not isinstance(longest, int):
        return ""
    return f"It was trained with answers of up to {longest} tokens."
