"""The names and addresses by which others reach the pages."""

import socket

import pytest

from lorarlhf_ui import network as address
from lorarlhf_ui.security import host_name


def test_hosts_are_this_machines_names_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "addresses", lambda: ["192.168.1.5", "10.0.0.2"])
    monkeypatch.setattr(address.socket, "gethostname", lambda: "Desk.home.arpa")
    assert address.allowed_hosts(False) == {"localhost", "127.0.0.1", "::1"}
    more = {"192.168.1.5", "10.0.0.2", "desk.home.arpa", "desk.local"}
    assert address.allowed_hosts(True) == address.allowed_hosts(False) | more
    assert all(host_name(f"[{n}]" if ":" in n else n) == n for n in address.allowed_hosts(True))


def test_addresses_are_those_that_others_reach() -> None:
    found = address.addresses()
    assert len(found) == len(set(found))
    for known in found:
        socket.inet_aton(known)
        assert not known.startswith(("127.", "169.254.", "0."))


def test_a_machine_without_a_network_has_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_towards_the_world", lambda: "")
    monkeypatch.setattr(address.psutil, "net_if_addrs", dict)
    assert address.addresses() == []


def test_the_qr_code_has_a_margin_of_light() -> None:
    lines = address.qr_lines("http://192.168.1.5:7860").split("\n")
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= 80
    assert set("".join(lines)) <= set(" ▀▄█")
    assert set(lines[0]) == set(lines[1]) == {"█"}  # four squares above, two in a line of text
    assert all(line.startswith("████") and line.endswith("████") for line in lines[:-1])
