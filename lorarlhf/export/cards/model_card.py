"""The card of an exported policy, written from its run: what it is, how it was made, how it did.

Every figure comes from a file of the run or of its project. What no file says is named as not
known, or left out. Raters are counted, never named.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from lorarlhf import __version__
from lorarlhf.export.cards.base_facts import BaseFacts
from lorarlhf.export.cards.loading import ADAPTER, GGUF, KINDS, MERGED, OLLAMA, how_to_load
from lorarlhf.export.cards.made_of import history, settings_of, votes_of
from lorarlhf.export.cards.markdown import bullets, card, code, plain, table
from lorarlhf.export.cards.outcome import alarms, forgetting, limits, results
from lorarlhf.export.cards.run_facts import RunFacts, hub_datasets, lineage_of
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import Row, write_bytes
from lorarlhf.runtime.run import library_versions

LIBRARY = {ADAPTER: "peft", MERGED: "transformers", GGUF: "gguf", OLLAMA: "gguf"}
RELATION = {ADAPTER: "adapter", MERGED: "finetune", GGUF: "finetune", OLLAMA: "finetune"}


def write_model_card(
    run: str | Path, folder: str | Path, kind: str, *, checks: Sequence[str] = (), repo: str = ""
) -> Path:
    """Write `README.md` into the folder of an export. Call it when its other files are there.

    Args:
        run: the run that was exported, or the folder of an adapter.
        folder: of the export.
        kind: `adapter`, `merged`, `gguf` or `ollama`.
        checks: sentences on how the export was compared with the original, in the order shown.
        repo: the repository on the hub that the folder is pushed to, for the lines that load it.

    Raises:
        UserError: the file can't be written.
    """
    out = Path(folder).expanduser()
    try:
        files = [file.name for file in out.iterdir() if file.is_file()]
        text = model_card(run, kind, files=files, checks=checks, repo=repo)
        return write_bytes(out / "README.md", text.encode())
    except OSError as error:
        raise UserError(
            f"{out / 'README.md'}: cannot be written ({error.strerror}); check the folder, its "
            "rights and the space on the disk"
        ) from error


def model_card(
    run: str | Path,
    kind: str,
    *,
    files: Sequence[str] = (),
    checks: Sequence[str] = (),
    repo: str = "",
) -> str:
    """The card as Markdown with the hub's YAML head; arguments as for `write_model_card`.

    Args:
        files: the names of the export's files.
    """
    if kind not in KINDS:
        raise ValueError(f"an export is one of {', '.join(KINDS)}, not {kind!r}")
    lineage = lineage_of(run)
    facts = lineage[-1]
    base = facts.base
    dtype = str(facts.record.get("compute_dtype") or "")
    loading = how_to_load(kind, base, facts.bits, dtype, files, repo)
    parts = [
        ("", _introduction(facts, base, kind)),
        ("Load it", loading),
        ("The base", _base(base)),
        ("How it was made", history(lineage)),
        ("Votes and raters", votes_of(facts)),
        ("Did it get better?", results(facts)),
        ("What was forgotten", forgetting(facts)),
        ("Alarms", alarms(lineage)),
        ("The export", _export(checks)),
        ("Limits", bullets(limits(lineage))),
        ("Settings", settings_of(lineage)),
        ("Libraries", _libraries(facts)),
    ]
    return card(_head(lineage, base, kind), facts.title or _title(facts, base), parts)


def _title(facts: RunFacts, base: BaseFacts) -> str:
    what = f"{facts.kind} of {base.name}" if facts.kind and base.name else base.name or facts.name
    return f"{what} ({facts.name})" if facts.name not in what else what


def _head(lineage: list[RunFacts], base: BaseFacts, kind: str) -> Row:
    stages = [facts.stage for facts in lineage if facts.stage]
    tags = ["lorarlhf", "rlhf", *(["lora"] if kind == ADAPTER else []), *dict.fromkeys(stages)]
    known = dict(base.licence_head or {})
    return {
        "base_model": base.hub_id,
        "base_model_relation": RELATION[kind] if base.hub_id else None,
        "library_name": LIBRARY[kind],
        "pipeline_tag": "text-generation",
        **known,
        "datasets": hub_datasets(lineage),
        "tags": [*tags, *(["ollama"] if kind == OLLAMA else [])],
    }


def _introduction(facts: RunFacts, base: BaseFacts, kind: str) -> str:
    what = f"This is {KINDS[kind]}, tuned from {plain(base.name) or 'a base that no file names'}"
    made = f"lorarlhf {__version__} on {time.strftime('%Y-%m-%d')}"
    if not facts.record:
        return (
            f"{what}. It was exported with {made} from a folder without the record of a run, so "
            "how it was trained is not known here."
        )
    return (
        f"{what}. It was exported with {made} from the run {code(facts.name)}. What follows was "
        "read from the files of this run and of its project."
    )


def _base(base: BaseFacts) -> str:
    if not base.name:
        return "No file names the base."
    page = f" ([its page]({base.page}))" if base.page else ""
    lines = [f"{plain(base.name)}{page}"]
    if base.licence:
        lines.append(f"Licence: {plain(base.licence)}, from {plain(base.licence_source)}.")
    elif base.licence_source:
        lines.append(f"Licence: not known. The base's folder has {plain(base.licence_source)}")
    else:
        page = f", {base.page}" if base.page else ""
        lines.append(f"Licence: not known: look at the base's page{page}.")
    lines += [base.note] if base.note else []
    return bullets(lines)


def _export(checks: Sequence[str]) -> str:
    return bullets(checks)


def _libraries(facts: RunFacts) -> str:
    versions = facts.record.get("versions")
    trained = versions if isinstance(versions, dict) else {}
    now = library_versions()
    rows = [
        (name, code(trained[name]) if name in trained else "not recorded", code(now[name]))
        for name in now
    ]
    if not trained:
        return table(("library", "exported with"), [(name, last) for name, _, last in rows])
    return table(("library", "trained with", "exported with"), rows)
