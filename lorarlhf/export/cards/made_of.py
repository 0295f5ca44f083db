"""How a policy was made, for its card: its runs in order, its votes, all settings."""

import json
from collections.abc import Sequence

from lorarlhf.evaluation.report_format import duration, number, part
from lorarlhf.evaluation.report_headline import headline
from lorarlhf.export.cards.markdown import bullets, code, fenced, listed, many, plain
from lorarlhf.export.cards.result_facts import round_of
from lorarlhf.export.cards.run_facts import (
    RunFacts,
    data_in_words,
    parents_in_words,
    reward_sources,
)
from lorarlhf.export.cards.vote_facts import agreement_in_words, raters_in_words, vote_facts
from lorarlhf.project.project import VOTES
from lorarlhf.rewards.raters import RATERS


def history(lineage: Sequence[RunFacts]) -> str:
    """The runs from the first to the exported one, each with its data and how it went."""
    if not lineage[-1].record and len(lineage) == 1:
        return _adapter_shape(lineage[-1]) or "Not recorded."
    lines = [f"{number}. {_step(facts)}" for number, facts in enumerate(lineage, start=1)]
    shape = _adapter_shape(lineage[-1])
    return "\n".join(lines) + (f"\n\n{shape}" if shape else "")


def _step(facts: RunFacts) -> str:
    """One run in a few sentences."""
    title = f", called {plain(facts.title)}" if facts.title else ""
    named = f"**{facts.kind or 'An adapter from elsewhere'}** ({code(facts.name)}{title})"
    if not facts.record:
        gone = "" if facts.there else ". Its folder is not there any more"
        return f"{named}: nothing is recorded of it{gone}."
    sentences = [f"{named}{_origin(facts)}."]
    if facts.stage == "demo":
        sentences.append(_demo(facts))
    elif data := data_in_words(facts):
        sentences.append(f"It learned from {plain(data)}.")
    if scored := reward_sources(facts):
        sentences.append(f"Its answers were scored by {listed([code(one) for one in scored])}.")
    if facts.summary:
        sentences.append(plain(headline(facts.summary, facts.record)))
    if facts.record.get("status") not in (None, "done"):
        sentences.append(f"Its status is {plain(facts.record['status'])}: it is not finished.")
    took = facts.record.get("seconds")
    if number(took) is not None:
        sentences.append(f"It took {duration(took)} {_machine(facts)}.")
    return " ".join(sentences)


def _origin(facts: RunFacts) -> str:
    parents = [plain(words) for words in parents_in_words(facts)]
    return f", from {listed(parents)}" if parents else ", from the base" if facts.record else ""


def _machine(facts: RunFacts) -> str:
    """For example `on a cpu in float32, the base in 4 bit`."""
    device, dtype = facts.record.get("device"), facts.record.get("compute_dtype")
    words = f"on {str(device).split(':')[0]}" if isinstance(device, str) else ""
    words += f" in {dtype}" if isinstance(dtype, str) else ""
    return words + (f", the base in {facts.bits} bit" if facts.bits else "")


def _demo(facts: RunFacts) -> str:
    """Who voted in a demo: a rule."""
    name, pairs = str(facts.config.get("rater", "")), facts.summary.get("pairs")
    votes = many(pairs, "vote") if isinstance(pairs, int) else "The votes"
    words = f"{votes} came from the simulated rater {code(name)}, a rule and no person"
    if name in RATERS:
        words += f": {plain(RATERS[name].sentence).rstrip('.')}"
    noise = number(facts.config.get("noise"))
    return words + (f"; {noise:.0%} of them were wrong on purpose." if noise else ".")


def _adapter_shape(facts: RunFacts) -> str:
    """Rank, alpha and modules of the adapter, from PEFT's own file."""
    rank, alpha = facts.adapter.get("r"), facts.adapter.get("lora_alpha")
    if rank is None:
        return ""
    words = f"The adapter has rank {rank} and alpha {alpha}"
    layers = facts.note.get("adapter_layers") or facts.record.get("adapter_layers")
    if isinstance(layers, int):
        words += f", on the upper {layers} layers"
    modules = facts.adapter.get("target_modules")
    if isinstance(modules, list) and modules:
        kinds = sorted({str(name).rsplit(".", 1)[-1] for name in modules})
        words += f"; modules: {', '.join(map(code, kinds))}"
    return f"{words}."


# ---- votes


def votes_of(facts: RunFacts) -> str:
    """The votes of its project, and of its round; without raters' names."""
    project = facts.project
    if project is None or not facts.record or not (project.folder / VOTES).is_file():
        return ""
    store = project.store()
    try:
        votes = store.votes(purpose="train")
    finally:
        store.close()
    lines = []
    found = round_of(facts)
    if found is not None and (count := part(found.about(), "votes").get("count")):
        lines.append(
            f"Round {found.number} of the project trained it, from {count:,} votes that name a "
            f"better answer; it is {found.verdict}."
        )
    if votes:
        counts = vote_facts(votes)
        lines += [
            f"When this was exported, the project had {many(counts.votes, 'vote')} for training "
            f"on {many(counts.prompts, 'prompt')}. The run may have learned from fewer.",
            f"Raters: {raters_in_words(counts)}.",
            *agreement_in_words(counts),
        ]
    return bullets(lines)


# ---- settings


def settings_of(lineage: Sequence[RunFacts]) -> str:
    """All settings of each run, folded, without files and paths."""
    blocks = []
    for facts in lineage:
        settings = facts.settings()
        if settings:
            lines = [
                f"{name}: {json.dumps(value, ensure_ascii=False)}"
                for name, value in settings.items()
            ]
            blocks.append(
                f"<details><summary>{plain(facts.name)}</summary>\n\n"
                f"{fenced(chr(10).join(lines), 'yaml')}\n\n</details>"
            )
    return "\n\n".join(blocks)
