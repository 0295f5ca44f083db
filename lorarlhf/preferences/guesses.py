"""The reward head's guesses: how well it predicted each vote before learning from it."""

from dataclasses import dataclass

from lorarlhf.preferences.rows import now
from lorarlhf.preferences.store import Store


@dataclass(frozen=True)
class Guess:
    """A prediction of one vote.

    Attributes:
        vote: the vote's id.
        model: 1 if the head scored the rater's choice highest, 0 if not, in between for equal
            scores.
        longer: the same for a guess that picks the longest answer.
        chance: the same for a random guess.
        votes: the number of votes that the head had learned from.
        confidence: the chance that the head gave to the answer that it scored highest, against each
            of the others; None for guesses of earlier versions.
    """

    vote: int
    model: float
    longer: float
    chance: float
    votes: int
    confidence: float | None = None


def add_guess(store: Store, guess: Guess) -> None:
    """Record a guess; a vote that has one already keeps it."""
    values = (guess.vote, guess.model, guess.longer, guess.chance, guess.votes, guess.confidence)
    with store.write() as db:
        db.execute(
            "INSERT OR IGNORE INTO guess (judgement_id, model, longer, chance, votes, confidence, "
            "created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*values, now()),
        )


def newest_guesses(store: Store, rater: str, count: int) -> list[Guess]:
    """The newest guesses of a rater's current votes, the newest first."""
    rows = store.rows(
        "SELECT g.judgement_id, g.model, g.longer, g.chance, g.votes, g.confidence FROM guess g "
        "JOIN current_judgement c ON c.id = g.judgement_id "
        "JOIN presentation p ON p.id = c.presentation_id JOIN rater r ON r.id = p.rater_id "
        "WHERE r.name = ? ORDER BY g.judgement_id DESC LIMIT ?",
        (rater, count),
    )
    return [Guess(*row) for row in rows]
