"""The frame around every page: its title, the project, the tabs, who is here, and the log out.

The server puts it into the page that Gradio wrote, so it is there before any script runs.
"""

import hashlib
import html
import re
from dataclasses import dataclass

from starlette.types import Scope

from lorarlhf_ui.theme import static

PAGES = {
    "/": ("Rate", "Rate answers"),
    "/chat": ("Chat", "Chat with the models"),
    "/compare": ("Compare", "Compare two models"),
    "/history": ("History", "Your votes"),
    "/insights": ("Insights", "What the votes say"),
    "/train": ("Train", "Train the models"),
    "/runs": ("Runs", "Training runs"),
    "/settings": ("Settings", "Settings"),
}
"""The name of each page on its tab, and its heading."""
OWNER_PAGES = ("/train", "/runs", "/settings")
"""The pages that only owners may open."""
_VISITOR = "lorarlhf_visitor"
_BODY = re.compile(r"<body[^>]*>")
# Gradio's script sets one title for all pages, and the manifest's address has no root path.
_CHANGES = {'control_page_title="true"': "", 'href="/manifest.json"': 'href="./manifest.json"'}


@dataclass(frozen=True)
class Visitor:
    """Who sent a request: a rater, and whether as an owner of the project."""

    name: str
    owner: bool


def visitor_in(scope: Scope) -> Visitor | None:
    """The visitor that the guard found; None if there is none."""
    return scope.get(_VISITOR)


def put_visitor(scope: Scope, visitor: Visitor | None) -> None:
    """Keep the visitor with the request."""
    scope[_VISITOR] = visitor


@dataclass(frozen=True)
class PageFrame:
    """What the frames of a project's pages have in common.

    Args:
        project: the project's name.
        root: the path under which a proxy serves the pages, or "".
        login: whether raters log in, and so can log out.
        pages: the paths of the pages that have a tab.
        votes: the file of the project's votes; it tells projects apart.
    """

    project: str = ""
    root: str = ""
    login: bool = False
    pages: tuple[str, ...] = tuple(PAGES)
    votes: str = ""

    def around(self, page: str, path: str, visitor: Visitor | None) -> str:
        """The page with the frame; unchanged if it is no page of the project."""
        body = _BODY.search(page)
        if body is None or visitor is None or path not in PAGES:
            return page
        for part, instead in _CHANGES.items():
            page = page.replace(part, instead)
        body = _BODY.search(page) or body
        page = page[: body.end()] + self._header(path, visitor) + page[body.end() :]
        title = " · ".join(part for part in (PAGES[path][0], self.project) if part)
        # The icon, too, would otherwise be looked for without the root path.
        in_head = (
            f'<title>{html.escape(title)}</title><link rel="icon" href="./favicon.ico">'
            f"<style>{static('page_frame.css')}</style>"
        )
        return page.replace("<head>", f"<head>{in_head}", 1)

    def _header(self, path: str, visitor: Visitor) -> str:
        tabs = "".join(
            f'<a href="{self.root}{to}"{" aria-current=page" * (to == path)}>{name}</a>'
            for to, (name, _) in PAGES.items()
            if to in self.pages and (visitor.owner or to not in OWNER_PAGES)
        )
        out = f'<form method="post" action="{self.root}/logout"><button>Log out</button></form>'
        return (
            f'<header class="site" data-drafts="{self._drafts(visitor)}"><div class="line">'
            f'<p class="project" title="The project">{html.escape(self.project)}</p>'
            f'<nav aria-label="Pages">{tabs}</nav>'
            f'<div class="who"><p title="Votes are stored under this name">Rater: '
            f"<b>{html.escape(visitor.name)}</b></p>{out if self.login else ''}</div></div>"
            f"<h1>{PAGES[path][1]}</h1></header>"
        )

    def _drafts(self, visitor: Visitor) -> str:
        """Names what this rater typed in this project and the browser keeps (drafts.js)."""
        return hashlib.sha256(f"{self.votes}\n{visitor.name}".encode()).hexdigest()[:16]


def refusal_page(path: str) -> str:
    """What a rater sees who opens a page of the owners."""
    name = PAGES[path][0]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1"></head><body><main class="refused">'
        f"<p>{name} is open to the owners of this project only. The other pages are open to "
        "you.</p></main></body></html>"
    )
