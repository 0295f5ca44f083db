"""What `compare-methods` has done, in a file beside its results: so that it can go on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorarlhf.cli.compare_plan import FORMS, RECORD, VOTES, ComparePlan, Method
from lorarlhf.preferences.exports import to_own
from lorarlhf.preferences.vote_use import VoteUse, count_use
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json, write_json, write_jsonl

Row = dict[str, Any]
MORE_VOTES = "Rate some answers"
A_NEW_COPY = "This comparison keeps the votes that it began with: name a new folder with --out"


@dataclass
class Record:
    """What is done, in `methods.json`: the runs by method, and what became of the votes.

    Attributes:
        failed: why methods could not be trained this time.
    """

    file: Path
    runs: dict[str, str]
    asked: Row
    votes: dict[str, Row]
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, plan: ComparePlan) -> "Record":
        """The record of a folder; a new one begins with a copy of the project's votes.

        Raises:
            UserError: the folder holds something else, or a comparison with other options; or a
                method has too few votes. Nothing is written then.
        """
        file = plan.folder / RECORD
        found = read_json(file)
        if found:
            changed = [
                name for name, value in plan.asked().items() if found["asked"][name] != value
            ]
            if changed:
                name = changed[0]
                before, now = (
                    asked[name] or "left out" for asked in (found["asked"], plan.asked())
                )
                how = (
                    "other settings"
                    if name == "config"
                    else f"{name} {before}, and now it is {now}"
                )
                raise UserError(
                    f"The comparison in {plan.folder} was begun with {how}. Name a new folder with "
                    "--out."
                )
            record = cls(file, found["runs"], found["asked"], found["votes"])
            record._check_votes(plan, A_NEW_COPY)
            return record
        other = [entry for entry in plan.folder.glob("*") if not entry.name.startswith(".in-use")]
        if other:
            raise UserError(f"{plan.folder} holds something else already. Name a new folder.")
        store = plan.project.store()
        try:
            votes = store.votes(purpose="train")
        finally:
            store.close()
        uses = {form: count_use(form, votes).as_dict() for form in FORMS}
        record = cls(file, {}, plan.asked(), uses)
        record._check_votes(plan, MORE_VOTES)
        write_jsonl(plan.folder / VOTES, to_own(votes).rows)
        record._write()
        return record

    def _check_votes(self, plan: ComparePlan, advice: str) -> None:
        for method in plan.methods:
            use = self.use(method.form)
            if method.learns_from_votes(plan.reward) and use.used < method.fewest_votes:
                raise UserError(
                    f"{method.name} can use {use.used} of the {use.votes} votes in "
                    f"{plan.project.folder}, and needs {method.fewest_votes} or more. {advice}, or "
                    "leave the method out."
                )

    def use(self, form: str) -> VoteUse:
        """What became of the votes in a form."""
        return VoteUse(**self.votes[form])

    def folder_of(self, name: str) -> Path:
        """The run of a method."""
        return Path(self.runs[name])

    def folder_for(self, plan: ComparePlan, method: Method) -> Path:
        """The run of a method, made where there is none."""
        if method.name not in self.runs:
            place = plan.folder / method.name
            if not plan.apart:
                place = plan.project.next_run(method.stage)
            self.runs[method.name] = str(place)
            self._write()
        return self.folder_of(method.name)

    def about(self, name: str) -> Row:
        """The `run.json` of a method; empty where it has none."""
        return read_json(self.folder_of(name) / "run.json") if name in self.runs else {}

    def reward(self, plan: ComparePlan) -> str | None:
        """The run of the reward role; None where no method needs one."""
        if plan.reward:
            return plan.reward
        return self.runs.get("reward")

    def drop_empty(self, name: str) -> None:
        """Forget a run that has not begun."""
        folder = self.folder_of(name)
        if not folder.is_dir() or not any(folder.iterdir()):
            if folder.is_dir():
                folder.rmdir()
            del self.runs[name]
            self._write()

    def _write(self) -> None:
        kept = {name: getattr(self, name) for name in ("asked", "runs", "votes")}
        write_json(self.file, json.loads(json.dumps(kept)))
