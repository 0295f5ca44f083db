"""What a run's files say of it and of the runs that it started from. Nothing is guessed.

A run in a project, a run outside of one, a demo, and a plain PEFT folder are all read: what no file
says is left out.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.evaluation.report_format import part
from lorarlhf.export.cards.base_facts import BaseFacts, base_facts, hub_id_of_cache, last_part
from lorarlhf.project.project import RUNS, Project, is_project
from lorarlhf.project.run_labels import read_label
from lorarlhf.project.run_list import SOURCES, kind_of, run_named_in
from lorarlhf.runtime.files import Row, read_json, readable_rows

FILES = (
    *("data", "eval", "prompts", "config", "init", "reward", "base", "out", "chat_template"),
    *("reward_function", "reward_model", "judge_function", "vllm_server", "device"),
)
"""Settings that name files, runs or this machine: a card says them in its own words, or not."""
_VOTES = re.compile(r"(?:\.votes(?:-\d+)?|rounds[/\\]\d+[/\\]votes-\w+)\.jsonl$")
_PATH = re.compile(r"(?<!\S)(?:[/~\\]|[A-Za-z]:[/\\]).*[/\\]")
_ABSOLUTE = re.compile(r"^(?:[/~\\]|[A-Za-z]:[/\\])")


@dataclass(frozen=True)
class RunFacts:
    """A run, as its folder says it.

    Attributes:
        folder: of the run, or of the adapter alone.
        record: `run.json`; empty if there is none.
        summary: its final figures; empty if it has not ended or nothing says them.
        title: what a person calls it, or "".
        adapter: the `adapter_config.json` of its policy, or of the first adapter that it has.
        note: what lorarlhf noted beside it (`lorarlhf.json`).
        there: whether the folder still exists.
        as_reward: whether a later run of the lineage took its reward role.
    """

    folder: Path
    record: Row = field(default_factory=dict)
    summary: Row = field(default_factory=dict)
    title: str = ""
    adapter: Row = field(default_factory=dict)
    note: Row = field(default_factory=dict)
    there: bool = True
    as_reward: bool = False

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def config(self) -> Row:
        """Its settings and files, as recorded."""
        found = self.record.get("config")
        return found if isinstance(found, dict) else {}

    @property
    def stage(self) -> str:
        """The algorithm, or the stage; "" if nothing says it."""
        found = self.config.get("algorithm") or self.record.get("stage")
        return found if isinstance(found, str) else ""

    @property
    def kind(self) -> str:
        """What its stage is called, for example `Supervised tuning`; "" if nothing says it."""
        return "Demo" if self.stage == "demo" else kind_of(self.stage) if self.stage else ""

    @property
    def base(self) -> BaseFacts:
        """What is known of its base."""
        path = self.adapter.get("base_model_name_or_path") or self.record.get("base_path")
        name = self.note.get("base") or self.record.get("base") or self.config.get("base")
        return base_facts(str(name or ""), str(path or ""))

    @property
    def bits(self) -> int | None:
        """In how many bits the base was loaded; None if nothing says it."""
        found = self.record.get("bits") or self.config.get("bits")
        return found if isinstance(found, int) else None

    @property
    def project(self) -> Project | None:
        """The project in whose folder it lies."""
        for place in self.folder.resolve().parents[1:2]:
            if is_project(place):
                return Project(place)
        return None

    def settings(self) -> Row:
        """Its settings without those that are not set, name files, or hold a path of a machine."""
        return {
            name: value
            for name, value in {**self.config, **part(self.summary, "settings")}.items()
            if name not in FILES and value is not None and not _has_path(value)
        }

    def alarms(self) -> list[Row]:
        """The alarms of its health checks, each with the newest row that reported it."""
        log = self.folder / "metrics.jsonl"
        rows = readable_rows(log) if log.is_file() else ()
        found = {str(row["alarm"]): row for row in rows if "alarm" in row}
        active = part(self.summary, "ppo").get("alarms") or self.summary.get("alarms") or []
        for name in active if isinstance(active, list) else []:
            found.setdefault(str(name), {"alarm": str(name)})
        on = set(map(str, active)) if isinstance(active, list) else set()
        return [row | {"active": name in on} for name, row in found.items()]

    @property
    def watched(self) -> bool:
        """Whether health checks looked at it."""
        return "alarms" in self.summary or "alarms" in part(self.summary, "ppo")


def read_facts(run: str | Path, as_reward: bool = False) -> RunFacts:
    """The facts of a run's folder, or of an adapter's own folder."""
    folder = Path(run).expanduser()
    if (folder / "adapter_config.json").is_file() and (folder.parent.parent / "run.json").is_file():
        folder = folder.parent.parent
    folder = folder.resolve()
    record = read_json(folder / "run.json")
    recorded = record.get("summary")
    summary = read_json(folder / "summary.json") or (recorded if isinstance(recorded, dict) else {})
    first = ("policy", "reward") if not as_reward else ("reward", "policy")
    places = [folder, *(folder / "adapters" / role for role in first)]
    places += sorted(folder.glob("adapters/*"))
    place = next((p for p in places if (p / "adapter_config.json").is_file()), folder)
    return RunFacts(
        folder,
        record,
        summary,
        read_label(folder).title,
        read_json(place / "adapter_config.json"),
        read_json(place / "lorarlhf.json"),
        folder.is_dir(),
        as_reward,
    )


def lineage_of(run: str | Path) -> list[RunFacts]:
    """A run with all that it started from: parents come first, the run itself last, each once."""
    found: dict[Path, RunFacts] = {}

    def add(facts: RunFacts, trail: frozenset[Path]) -> None:
        for option in SOURCES:
            named = facts.config.get(option)
            if not isinstance(named, str) or not named:
                continue
            parent = read_facts(_place(named, facts), as_reward=option == "reward")
            if parent.folder not in found and parent.folder not in trail:
                add(parent, trail | {parent.folder})
        found[facts.folder] = facts

    itself = read_facts(run)
    add(itself, frozenset({itself.folder}))
    return list(found.values())


def parents_in_words(facts: RunFacts) -> list[str]:
    """From which policy and which reward role it started, as names without paths."""
    words = {"init": "the policy of", "reward": "the reward role of"}
    return [
        f"{words[option]} {read_facts(_place(named, facts)).name}"
        for option in SOURCES
        if isinstance(named := facts.config.get(option), str) and named
    ]


def _place(recorded: str, facts: RunFacts) -> Path:
    """The folder of a source run; of a project that was moved the run that is there now."""
    project = facts.project
    if project is not None:
        place = (project.folder / RUNS).resolve()
        name = run_named_in(recorded, {run.name for run in project.runs()}, str(place))
        if name:
            return place / name
    return Path(recorded).expanduser()


# ---- data


def data_in_words(facts: RunFacts) -> str:
    """How many rows of which kind it learned from, and where they are from; "" if not recorded."""
    count = row_count(facts)
    source = data_source(facts)
    kind = _ROWS.get(str(facts.record.get("stage")), "rows")
    if count is None:
        return f"{kind} ({source})" if source else ""
    return f"{count:,} {kind}{f' ({source})' if source else ''}"


_ROWS = {
    "sft": "demonstrations",
    "reward": "preference pairs",
    "dpo": "preference pairs",
    "orpo": "preference pairs",
    "kto": "rows marked good or bad",
    "ppo": "prompts",
    "ditto": "edited answers",
}


def row_count(facts: RunFacts) -> int | None:
    """The number of rows that it learned from; None if nothing says it."""
    rows = part(facts.record, "rows").get("count")
    for value in (rows, facts.summary.get("rows"), facts.summary.get("pairs")):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def data_source(facts: RunFacts) -> str:
    """Where its rows are from, without a path; "" if nothing says it."""
    named = facts.config.get("data")
    if not isinstance(named, str) or not named:
        return ""
    if hub_id := hub_id_of_cache(named, "datasets"):
        return f"the data set {hub_id}"
    return "the project's votes" if _VOTES.search(named) else file_name(named)


def hub_datasets(lineage: list[RunFacts]) -> list[str]:
    """The ids of data sets on the hub from whose local copies a lineage learned."""
    named = [facts.config.get(name) for facts in lineage for name in ("data", "prompts")]
    ids = [hub_id_of_cache(name, "datasets") for name in named if isinstance(name, str)]
    return list(dict.fromkeys(filter(None, ids)))


def file_name(named: str) -> str:
    """The end of a path of any system, also of `FILE.py:NAME`."""
    return re.split(r"[/\\]", named.rstrip("/\\"))[-1]


def reward_sources(facts: RunFacts) -> list[str]:
    """The Python functions and classification models that scored its answers, without paths."""
    found: list[str] = []
    for name, short in (("reward_function", file_name), ("reward_model", last_part)):
        value = facts.config.get(name)
        values = value if isinstance(value, list) else [value]
        found += [short(one) for one in values if isinstance(one, str) and one]
    return found


def without_paths(text: str) -> str:
    """A name, such as a judge's, with the end of a path where it has a whole one."""
    return _PATH.sub("", text)


def _has_path(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_path, value.values()))
    if isinstance(value, list):
        return any(map(_has_path, value))
    return isinstance(value, str) and bool(_ABSOLUTE.match(value) or "://" in value)
