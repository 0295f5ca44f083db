"""Raters' passwords and logins: what is stored, what is refused, when a login ends."""

import hashlib
import sqlite3
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.preferences import accounts, schema
from lorarlhf.preferences.accounts import (
    OWNER,
    RATER,
    SESSION_SECONDS,
    is_owner,
    log_in,
    log_out,
    logged_in,
    owners,
    password_fits,
    remove_password,
    set_password,
    set_role,
    with_password,
)
from lorarlhf.preferences.store import Store
from lorarlhf.runtime.errors import UserError

PASSWORD = "quiet harbour 7"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "preferences.sqlite")


def on_disk(store: Store) -> bytes:
    """The bytes of all the store's files, including the journal."""
    return b"".join(path.read_bytes() for path in store.path.parent.iterdir())


def test_only_the_right_password_fits(store: Store) -> None:
    set_password(store, "ann", PASSWORD)
    store.rater("bob")  # votes, but has no password
    assert password_fits(store, "ann", PASSWORD)
    for name, password in (
        ("ann", PASSWORD + " "),
        ("ann", ""),
        ("Ann", PASSWORD),
        ("bob", PASSWORD),
        ("bob", ""),
        ("nobody", PASSWORD),
        ("", ""),
        ("ann'--", PASSWORD),
    ):
        assert not password_fits(store, name, password)
    assert with_password(store) == ["ann"]


def test_passwords_and_tokens_are_on_the_disk_as_hashes_only(store: Store) -> None:
    set_password(store, "ann", PASSWORD)
    token = log_in(store, "ann")
    assert logged_in(store, token) == "ann"
    kept = on_disk(store)
    assert b"scrypt$" in kept and PASSWORD.encode() not in kept and token.encode() not in kept
    assert hashlib.sha256(PASSWORD.encode()).hexdigest().encode() not in kept
    store.close()
    assert token.encode() not in on_disk(store)


def test_equal_passwords_have_unequal_hashes(store: Store) -> None:
    for name in ("ann", "bob"):
        set_password(store, name, PASSWORD)
    hashes = {row["password"] for row in store.rows("SELECT password FROM rater")}
    assert len(hashes) == 2


@pytest.mark.parametrize("password", ["", "1234567", "       "])
def test_short_passwords_are_refused(store: Store, password: str) -> None:
    with pytest.raises(UserError, match="8 characters"):
        set_password(store, "ann", password)
    assert with_password(store) == []


@pytest.mark.parametrize("name", ["", "  ", " ann", "ann ", "ann\nbob", "ann\x00"])
def test_names_are_one_line_without_blanks_at_the_ends(store: Store, name: str) -> None:
    with pytest.raises(UserError, match="one line"):
        set_password(store, name, PASSWORD)


def test_an_unknown_name_costs_the_same_hash(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    set_password(store, "ann", PASSWORD)
    costs: list[dict[str, Any]] = []

    def scrypt(password: bytes, *, salt: bytes, **cost: Any) -> bytes:
        costs.append(cost)
        return real(password, salt=salt, **cost)

    real: Callable[..., bytes] = hashlib.scrypt
    monkeypatch.setattr(accounts.hashlib, "scrypt", scrypt)
    seconds = [fastest(store, name) for name in ("ann", "nobody")]
    assert len(costs) == 6 and all(cost == costs[0] for cost in costs)
    assert 1 / 3 < seconds[0] / seconds[1] < 3


def fastest(store: Store, name: str) -> float:
    def once() -> float:
        start = time.perf_counter()
        assert not password_fits(store, name, "wrong")
        return time.perf_counter() - start

    return min(once() for _ in range(3))


def test_a_login_ends_by_logout_and_by_age(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    set_password(store, "ann", PASSWORD)
    first, second = log_in(store, "ann"), log_in(store, "ann")
    assert first != second and len(first) >= 43  # 256 bits
    log_out(store, first)
    assert logged_in(store, first) is None and logged_in(store, second) == "ann"
    assert logged_in(store, "") is None and logged_in(store, "ann") is None
    now = time.time()
    monkeypatch.setattr(accounts.time, "time", lambda: now + SESSION_SECONDS - 5)
    assert logged_in(store, second) == "ann"
    monkeypatch.setattr(accounts.time, "time", lambda: now + SESSION_SECONDS + 5)
    assert logged_in(store, second) is None
    log_in(store, "ann")  # takes the old ones out of the file
    assert store.rows("SELECT count(*) AS n FROM session")[0]["n"] == 1


def test_another_password_and_none_end_all_logins(store: Store) -> None:
    for name in ("ann", "bob"):
        set_password(store, name, PASSWORD)
    ann, bob = log_in(store, "ann"), log_in(store, "bob")
    set_password(store, "ann", "another harbour")
    assert logged_in(store, ann) is None and logged_in(store, bob) == "bob"
    assert not password_fits(store, "ann", PASSWORD)
    remove_password(store, "bob")
    assert logged_in(store, bob) is None and with_password(store) == ["ann"]
    with pytest.raises(UserError, match="no rater bob"):
        remove_password(store, "bob")
    assert store.rater("bob")  # the rater and the votes stay


def test_a_login_outlives_the_server(store: Store) -> None:
    set_password(store, "ann", PASSWORD)
    token = log_in(store, "ann")
    store.close()
    again = Store(store.path)
    assert logged_in(again, token) == "ann" and password_fits(again, "ann", PASSWORD)


# ---- roles, and names and passwords in other Unicode forms


def test_who_could_log_in_before_there_were_roles_is_an_owner(tmp_path: Path) -> None:
    path = tmp_path / "preferences.sqlite"
    old = sqlite3.connect(path)
    old.executescript("".join(schema.MIGRATIONS[:3]) + "PRAGMA user_version = 3;")
    old.execute("INSERT INTO rater VALUES (1, 'ann', 0, 'scrypt$00$00'), (2, 'me', 0, NULL)")
    old.commit()
    old.close()
    store = Store(path)
    assert owners(store) == ["ann"] and is_owner(store, "ann") and not is_owner(store, "me")
    set_password(store, "me", PASSWORD)
    assert not is_owner(store, "me")


def test_a_role_is_set_with_the_password_or_later_and_ends_with_it(store: Store) -> None:
    set_password(store, "ann", PASSWORD, OWNER)
    set_password(store, "bob", PASSWORD)
    assert owners(store) == ["ann"]
    set_role(store, "bob", OWNER)
    set_role(store, "ann", RATER)
    assert owners(store) == ["bob"]
    remove_password(store, "bob")
    set_password(store, "bob", PASSWORD)
    assert owners(store) == []
    with pytest.raises(UserError, match="no rater eve with a password"):
        set_role(store, "eve", OWNER)


@pytest.mark.parametrize("typed", ["NFC", "NFD"])
@pytest.mark.parametrize("stored", ["NFC", "NFD", "before"])
def test_names_and_passwords_fit_in_any_unicode_form(store: Store, stored: str, typed: str) -> None:
    name, password = "Zoë Müller", "größer als µ, café"
    form = "NFD" if stored == "before" else stored
    set_password(store, *(unicodedata.normalize(form, text) for text in (name, password)))
    if stored == "before":  # as they were typed
        salt, raw = "00" * 16, unicodedata.normalize("NFD", password)
        kept = f"scrypt${salt}${accounts._hash(raw, bytes.fromhex(salt))}"
        with store.write() as db:
            old_name = unicodedata.normalize("NFD", name)
            db.execute("UPDATE rater SET name = ?, password = ?", (old_name, kept))
    asked = unicodedata.normalize(typed, name)
    assert password_fits(store, asked, unicodedata.normalize(typed, password))
    assert not password_fits(store, asked, "größer als m, café")
    who = logged_in(store, log_in(store, asked))
    assert who is not None and unicodedata.normalize("NFC", who) == name
    assert with_password(store) == [who]  # nobody was added
    remove_password(store, asked)
    assert with_password(store) == []
