"""The requests of the History page, as plain functions: list, correct and undo votes; files.

`history_page.py` only shows the results.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorarlhf.preferences.accounts import is_owner, with_password
from lorarlhf.preferences.blind_comparisons import has_finished
from lorarlhf.preferences.history import (
    PAGE,
    VoteFilter,
    as_shown,
    as_stored,
    describe,
    find,
    ranking_text,
    read_ranking,
)
from lorarlhf.preferences.import_folder import merge_all
from lorarlhf.preferences.imports import read_votes
from lorarlhf.preferences.records import RANKED, Verdict, Vote
from lorarlhf.preferences.statistics import newest_judgement
from lorarlhf.preferences.store import Store
from lorarlhf.preferences.undo import present_again
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.downloads import DATASET, exported, link, whose
from lorarlhf_ui.markdown import excerpt, prompt_html, render
from lorarlhf_ui.reward_role import NO_REWARD, RewardRole
from lorarlhf_ui.votes import LONGEST_TEXT, View, edited

LONGEST_SEARCH = 200
NOT_YOURS = "in the name of another rater with a password"
NOT_OWNER = "in other names, which only an owner of the project may import"
ONLY_OWNERS = "sets of answers to rate, which only an owner of the project may import"
_NOT_OVER = "Finish this blind comparison first: a score could tell who wrote an answer."
_GONE = "This vote was changed elsewhere in the meantime. Reload the page."


class History:
    """The requests of the History page.

    Args:
        store: the votes. A store of its own, so that votes do not wait while it reads.
        changed: called with the rater whose votes were changed.
        everybody: whether a rater may see the votes of others; never when raters log in.
        reward: says what it likes in the answers of a vote; None without a model.
    """

    def __init__(
        self,
        store: Store,
        changed: Callable[[str], None],
        everybody: bool = False,
        reward: RewardRole | None = None,
    ) -> None:
        self.store, self.changed, self.everybody = store, changed, everybody
        self.reward = reward
        self._counted: dict[tuple[Any, ...], View] = {}

    # ---- reading

    def search(self, rater: str, data: View) -> View:
        """A page of the votes that match, and the number of all that match.

        Args:
            data: `scope`, `purpose`, `verdict`, `words`, and `start`, the first row of the page.
        """
        wanted = VoteFilter(
            whose(rater, str(data.get("scope") or "mine"), self.everybody),
            str(data.get("purpose") or ""),
            str(data.get("verdict") or ""),
            str(data.get("words") or "")[:LONGEST_SEARCH],
            without_login=is_owner(self.store, rater),
        )
        start = data.get("start")
        found = find(self.store, wanted, start if isinstance(start, int) else 0)
        return {
            "rows": [_row(vote) for vote in found.votes],
            "start": found.start,
            "total": found.total,
            "page": PAGE,
            "everybody": self.everybody,
            "rater": rater,
        }

    def open(self, rater: str, data: View) -> View:
        """One vote with all its details."""
        return self._details(rater, self._vote(rater, data))

    def shares(self, rater: str, data: View) -> View:
        """The `answers` of a vote as heat maps: what the reward role likes in them.

        Raises:
            UserError: the vote is gone, or its blind comparison is not over; there is no reward
                role, or the model can't say.
        """
        vote = as_shown(self._vote(rater, data))
        if not self._is_over(vote):
            raise UserError(_NOT_OVER)
        if self.reward is None:
            raise UserError(NO_REWARD)
        return {"answers": self.reward.heat_maps(vote.prompt, vote.completions)}

    # ---- changing

    def correct(self, rater: str, data: View) -> View:
        """Replace a vote's verdict.

        Args:
            data: `id` of the vote, and the new `vote`; see `verdict_of`.

        Returns:
            The details of the corrected vote, which has a new number.

        Raises:
            UserError: the vote was changed elsewhere or belongs to another rater, or the verdict
                does not fit.
        """
        vote = self._own_vote(rater, data)
        new = data.get("vote")
        try:
            verdict = verdict_of(new if isinstance(new, dict) else {}, vote.completions)
            verdict = as_stored(verdict, vote.shown)
            if verdict == vote.verdict:
                return self._details(rater, vote) | {"message": "Nothing was changed."}
            number = self.store.correct(vote.id, verdict)
        except ValueError as error:
            raise UserError(f"This correction can't be stored: {error}.") from error
        self.changed(vote.rater)
        corrected = self._vote(rater, {"id": number})
        message = {"message": "The correction is saved.", "row": _row(corrected)}
        return self._details(rater, corrected) | message

    def undo(self, rater: str, data: View) -> View:
        """Undo one vote. If it is the rater's own, its item will be shown again on the Rate page.

        Raises:
            UserError: the vote was changed elsewhere, or belongs to another rater.
        """
        vote = self._own_vote(rater, data)
        with self.store.write():
            self.store.correct(vote.id, None)
            asked = vote.rater == rater and len(vote.completions) > 1
            if asked:
                present_again(self.store, vote.presentation_id)
        self.changed(vote.rater)
        again = " You will see these answers again." if asked else ""
        return {"gone": vote.id, "message": f"The vote is undone.{again}"}

    def _vote(self, rater: str, data: View) -> Vote:
        number = data.get("id")
        vote = self.store.vote(number) if isinstance(number, int) else None
        if vote is None or not self._may_see(rater, vote):
            raise UserError(_GONE)
        return vote

    def _own_vote(self, rater: str, data: View) -> Vote:
        vote = self._vote(rater, data)
        if not self._may_change(rater, vote):
            raise UserError(f"This is {vote.rater}'s vote; only {vote.rater} can change it.")
        return vote

    def _may_see(self, rater: str, vote: Vote) -> bool:
        """Whether the list shows it: an owner who logs in sees imported votes, too."""
        if self.everybody or vote.rater == rater:
            return True
        return is_owner(self.store, rater) and vote.rater not in with_password(self.store)

    def _may_change(self, rater: str, vote: Vote) -> bool:
        """Whether it is the rater's own vote, or that of a name without a password."""
        return vote.rater == rater or vote.rater not in with_password(self.store)

    def _details(self, rater: str, stored: Vote) -> View:
        vote = as_shown(stored)
        verdict = vote.verdict
        sources = vote.sources if self._is_over(vote) else [""] * len(vote.sources)
        answers = zip(vote.completions, sources, strict=True)
        return {
            "id": vote.id,
            "prompt": prompt_html(vote.prompt),
            "answers": [{"html": render(text), "source": source} for text, source in answers],
            "summary": describe(verdict, len(vote.completions)),
            "verdict": verdict.verdict,
            "ranking": ranking_text(verdict.ranking),
            "strength": verdict.strength or "",
            "note": verdict.note or "",
            "edited": verdict.edited or "",
            "edited_html": render(verdict.edited) if verdict.edited else "",
            "when": vote.created_at,
            "milliseconds": vote.milliseconds,
            "rater": "" if vote.rater == rater else vote.rater,
            "purpose": vote.purpose,
            "repeat": vote.repeats is not None,
            "imported": vote.imported,
            "yours": self._may_change(rater, vote),
            "liked": self.reward is not None and self._is_over(vote) and self.reward.is_there(),
        }

    def _is_over(self, vote: Vote) -> bool:
        """Whether names may be shown: in a blind comparison only once the rater has finished it."""
        return has_finished(self.store, vote.rater, vote.item_id)

    # ---- files

    def export(self, rater: str, data: View) -> View:
        """What a download would contain and leave out, and its address."""
        form, purpose = str(data.get("form")), str(data.get("purpose"))
        scope = str(data.get("scope") or "mine")
        name = whose(rater, scope, self.everybody)
        # Judgements are only added, so a count is valid as long as the newest one is the same.
        newest = newest_judgement(self.store)
        key = (newest, name, form, purpose)
        if key not in self._counted:
            # A data set has the rows of TRL's form.
            counted = "trl" if form == DATASET else form
            votes, export = exported(self.store, name, counted, purpose)
            left = [f"{count} {reason}" for reason, count in export.missing().items()]
            counts = {"votes": votes, "rows": len(export.rows), "left_out": left}
            valid = {old: view for old, view in self._counted.items() if old[0] == newest}
            self._counted = valid | {key: counts}
        about = {"link": link(form, scope, purpose), "everybody": self.everybody}
        return self._counted[key] | about

    def import_file(self, rater: str, path: str, skip_bad: bool = False) -> str:
        """Add the votes of a file to the store.

        When raters log in, nobody can import votes in the name of another rater with a password,
        and who is no owner can import their own votes only.

        Returns:
            A message that says how many votes were imported and what was left out. With `skip_bad`
            it has a line for each of the first rows that can't be read.

        Raises:
            UserError: the file can't be read (file, line, field). The store is unchanged.
        """
        file = Path(path)
        try:
            found = read_votes(file, skip_bad=skip_bad)
            votes = [vote for vote in found.votes if self._may_import(rater, vote.rater)]
            to_rate = found.candidates if self._may_add(rater) else []
            allowed = replace(found, votes=votes, candidates=to_rate)
            merged, rated = merge_all(self.store, [allowed])
        except UserError as error:  # the path of the upload is of no use to the rater
            raise UserError(str(error).replace(f"{file.parent}/", "")) from error
        if any(self.store.rater_name(vote.rater) == rater for vote in votes):
            self.changed(rater)
        why = NOT_YOURS if is_owner(self.store, rater) else NOT_OWNER
        others = len(found.votes) - len(votes)
        also = [f"{others} {why}"] if others else []
        refused = len(found.candidates) - len(to_rate)
        also += [f"{refused} {ONLY_OWNERS}"] if refused else []
        imported = f"Imported {merged.added} vote{'s' * (merged.added != 1)} from {file.name}."
        lines = [imported + found.rest(merged, rated, also), *found.to_rate(rated)]
        lines += [f"Look at these: {found.remarked()}."] if found.remarks else []
        lines += [found.first_bad().replace(f"{file.parent}/", "")] if found.bad else []
        return "\n".join(lines)

    def _may_add(self, rater: str) -> bool:
        """Whether a rater may add what everybody is asked."""
        return self.everybody or is_owner(self.store, rater)

    def _may_import(self, rater: str, name: str) -> bool:
        name = self.store.rater_name(name)
        if self.everybody or name == rater:
            return True
        return is_owner(self.store, rater) and name not in with_password(self.store)


def verdict_of(form: View, answers: Sequence[str]) -> Verdict:
    """The verdict of the page's correction form, in the order of the screen.

    Args:
        form: `verdict`, `ranking` (such as "B > A = C"), `strength`, `note`, `edited`.

    Raises:
        UserError: the ranking can't be read.
        ValueError: a text is too long, or a field has a value that the form does not offer.
    """
    verdict = str(form.get("verdict"))
    ranked = verdict == RANKED
    return Verdict(
        verdict,
        read_ranking(str(form.get("ranking") or ""), len(answers)) if ranked else [],
        (str(form.get("strength") or "") or None) if ranked else None,
        _text(form.get("note")),
        edited(_text(form.get("edited")), answers),
    )


def _text(value: Any) -> str | None:
    text = str(value or "").strip()
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a text has up to {LONGEST_TEXT} characters")
    return text or None


def _row(vote: Vote) -> View:
    """A vote as a row of the list."""
    return {
        "id": vote.id,
        "summary": describe(as_shown(vote).verdict, len(vote.completions)),
        "prompt": excerpt(vote.prompt),
        "when": vote.created_at,
        "rater": vote.rater,
        "purpose": vote.purpose,
        "noted": bool(vote.verdict.note),
        "edited": bool(vote.verdict.edited),
        "imported": vote.imported,
    }
