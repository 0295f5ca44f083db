"""What is known of a base: its name for people, its id on the hub, its licence. Only from files.

Nothing is looked up on the network: of a base from the hub, the local cache may have its README.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorarlhf.backbone.fetch import PACKAGED

HUB = "https://huggingface.co"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_CACHED = re.compile(r"(?:^|[/\\])(models|datasets)--([\w.-]+?)--([\w.-]+?)(?=[/\\]|$)")
_LICENCE_FILES = ("LICENSE*", "LICENCE*", "license*", "licence*", "COPYING*")


@dataclass(frozen=True)
class BaseFacts:
    """A base, as far as files say.

    Attributes:
        name: for people, without a path.
        hub_id: on the hub, as `org/name`; "" if it is not from there.
        licence: the hub's short name of it, such as `apache-2.0`; "" if it is not known.
        licence_head: the fields `license`, `license_name` and `license_link` for a card's head.
        licence_source: where that was read, for people; of a licence file its first line.
        note: what else is to be known about its weights, as a sentence, or "".
    """

    name: str
    hub_id: str = ""
    licence: str = ""
    licence_head: Mapping[str, str] | None = None
    licence_source: str = ""
    note: str = ""

    @property
    def shared_name(self) -> str:
        """By which others can find it: its id on the hub, or else its name without a path."""
        return self.hub_id or re.split(r"[/\\]", self.name)[-1]

    @property
    def page(self) -> str:
        """Its page on the hub, or ""."""
        return f"{HUB}/{self.hub_id}" if self.hub_id else ""


def base_facts(base: str, base_path: str) -> BaseFacts:
    """What is known of a base.

    Args:
        base: as the run names it: a packaged name, a folder or a hub id; "" if nothing says it.
        base_path: the folder or id that was loaded; "" if nothing says it.
    """
    if base in PACKAGED:
        return _packaged(base)
    path = Path(base_path or base).expanduser()
    cached = hub_id_of_cache(base_path or base)
    if (base_path or base) and path.is_dir():
        return _of_folder(path, cached, base)
    hub_id = cached or _id_without_folder(base_path or base)
    name = hub_id or last_part(base or base_path)
    if hub_id and (readme := _cached_readme(hub_id)) is not None:
        return _with_licence(BaseFacts(name, hub_id), read_head(readme), "its README")
    return BaseFacts(name, hub_id)


def _packaged(base: str) -> BaseFacts:
    made = PACKAGED[base]
    note = (
        f"The weights were converted from the quantised file in the package {made.requirement}, so "
        "they are not exactly those of the original."
    )
    head = {"license": made.licence} if made.licence else None
    return BaseFacts(base, made.model, made.licence, head, "the packaged model", note)


def _of_folder(folder: Path, hub_id: str, base: str) -> BaseFacts:
    name = hub_id or last_part(base or str(folder))
    facts = _with_licence(BaseFacts(name, hub_id), read_head(folder / "README.md"), "its README")
    if facts.licence:
        return facts
    for pattern in _LICENCE_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file() and (line := _first_line(file)):
                return BaseFacts(name, hub_id, licence_source=f"{file.name}: {line}")
    return facts


def _with_licence(facts: BaseFacts, head: Mapping[str, Any], source: str) -> BaseFacts:
    names = ("license", "license_name", "license_link")
    found = {name: head[name] for name in names if isinstance(head.get(name), str) and head[name]}
    licence = found.get("license_name") or found.get("license", "")
    if not licence:
        return facts
    return BaseFacts(facts.name, facts.hub_id, licence, found, source, facts.note)


def read_head(readme: Path) -> dict[str, Any]:
    """The YAML head of a README; empty if there is none, or it can't be read."""
    try:
        text = readme.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    found = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        head = yaml.safe_load(found[1])
    except yaml.YAMLError:
        return {}
    return head if isinstance(head, dict) else {}


def hub_id_of_cache(path: str, kind: str = "models") -> str:
    """The `org/name` of which a path in the hub's cache is a copy; "" for any other path.

    Args:
        kind: `models` or `datasets`.
    """
    found = _CACHED.search(path)
    return f"{found[2]}/{found[3]}" if found and found[1] == kind else ""


def _id_without_folder(base: str) -> str:
    """A base as a hub id, if it can be none of this disk's paths."""
    if not _HUB_ID.fullmatch(base) or Path(base).exists():
        return ""
    return base if "/" in base else ""


def _cached_readme(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "README.md")
    return Path(found) if isinstance(found, str) else None


def _first_line(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return next((line.strip()[:80] for line in text.splitlines() if line.strip()), "")


def last_part(path: str) -> str:
    """The end of a path of any system; of a hub id the whole of it."""
    if _HUB_ID.fullmatch(path):
        return path
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
