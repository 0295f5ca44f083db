"""Raters with a password, their roles and logins. Passwords and tokens are stored as hashes only.

An owner may do everything on the pages. A rater may do nothing that changes the project for others.
"""

import hashlib
import secrets
import time

from lorarlhf.preferences.records import is_name, spellings
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

SESSION_SECONDS = 30 * 24 * 3600
SHORTEST_PASSWORD = 8
OWNER, RATER = "owner", "rater"
_COST, _BLOCK, _LANES = 2**15, 8, 1  # scrypt (RFC 7914): 32 MB and about a tenth of a second
_MOST_MEMORY = 64 * 2**20
_NOBODY = "scrypt$00$" + "0" * 128  # takes as long as a real one and never matches


def set_password(store: Store, name: str, password: str, role: str | None = None) -> None:
    """Set or change a rater's password; all of the rater's logins end.

    Args:
        role: `OWNER` or `RATER`; None leaves it as it is, and a new rater is a `RATER`.

    Raises:
        UserError: an empty name, or a password that is too short.
    """
    if not is_name(name):
        raise UserError("A rater's name is one line, without blanks at its ends.")
    if len(password) < SHORTEST_PASSWORD:
        raise UserError(f"A password has {SHORTEST_PASSWORD} characters or more.")
    salt = secrets.token_bytes(16)
    stored = f"scrypt${salt.hex()}${_hash(spellings(password)[0], salt)}"
    with store.write() as db:
        rater = store.rater(name)
        db.execute(
            "UPDATE rater SET password = ?, role = coalesce(?, role) WHERE id = ?",
            (stored, role, rater),
        )
        db.execute("DELETE FROM session WHERE rater_id = ?", (rater,))


def remove_password(store: Store, name: str) -> None:
    """Remove a rater's password, so that nobody can log in as them; the votes stay.

    Raises:
        UserError: no rater of this name has a password.
    """
    _check_known(store, name)
    with store.write() as db:
        rater = store.rater(name)
        db.execute("UPDATE rater SET password = NULL, role = ? WHERE id = ?", (RATER, rater))
        db.execute("DELETE FROM session WHERE rater_id = ?", (rater,))


def set_role(store: Store, name: str, role: str) -> None:
    """Change the role of a rater who can log in, from their next request on.

    Raises:
        UserError: no rater of this name has a password.
    """
    _check_known(store, name)
    with store.write() as db:
        db.execute("UPDATE rater SET role = ? WHERE id = ?", (role, store.rater(name)))


def _check_known(store: Store, name: str) -> None:
    if store.rater_name(name) not in with_password(store):
        raise UserError(f"There is no rater {name} with a password here.")


def with_password(store: Store) -> list[str]:
    """The names of all raters who can log in."""
    found = store.rows("SELECT name FROM rater WHERE password IS NOT NULL ORDER BY name")
    return [row["name"] for row in found]


def is_owner(store: Store, name: str) -> bool:
    """Whether a rater may do what changes the project for others."""
    return bool(store.rows("SELECT 1 FROM rater WHERE name = ? AND role = ?", (name, OWNER)))


def owners(store: Store) -> list[str]:
    """The names of the owners who can log in."""
    return [
        row["name"]
        for row in store.rows(
            "SELECT name FROM rater WHERE password IS NOT NULL AND role = ? ORDER BY name", (OWNER,)
        )
    ]


def password_fits(store: Store, name: str, password: str) -> bool:
    """Whether it is the rater's password; takes equally long for unknown names.

    Passwords are stored composed (NFC). Older ones were stored as they were typed, so every form
    of the password is tried.
    """
    rows = store.rows("SELECT password FROM rater WHERE name = ?", (store.rater_name(name),))
    stored = rows[0]["password"] if rows and rows[0]["password"] else _NOBODY
    _, salt, digest = stored.split("$")
    hashes = [_hash(form, bytes.fromhex(salt)) for form in spellings(password)]
    return any(secrets.compare_digest(known, digest) for known in hashes)


def log_in(store: Store, name: str) -> str:
    """Start a login and return its token for the browser."""
    token = secrets.token_urlsafe(32)
    now = int(time.time())
    with store.write() as db:
        db.execute("DELETE FROM session WHERE expires_at < ?", (now,))
        values = (_digest(token), store.rater(name), now + SESSION_SECONDS)
        db.execute("INSERT INTO session VALUES (?, ?, ?)", values)
    return token


def logged_in(store: Store, token: str) -> str | None:
    """The rater behind a token; None if it is unknown, ended or expired."""
    rows = store.rows(
        "SELECT r.name FROM session s JOIN rater r ON r.id = s.rater_id "
        "WHERE s.digest = ? AND s.expires_at >= ?",
        (_digest(token), int(time.time())),
    )
    return rows[0]["name"] if rows else None


def log_out(store: Store, token: str) -> None:
    """End a login."""
    with store.write() as db:
        db.execute("DELETE FROM session WHERE digest = ?", (_digest(token),))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _hash(password: str, salt: bytes) -> str:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES, maxmem=_MOST_MEMORY
    ).hex()
