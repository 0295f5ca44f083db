"""Imports Gradio in half the time. To be imported before `gradio`.

While it is imported, Gradio parses the source of each of its components to write type stubs for
editors beside them. That takes half of the import's time, and serving pages does not need them.
Gradio has no setting for it, so the function that writes the stubs is replaced as soon as its
module is loaded. Without this module everything works, a second or two later.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import Any

_MODULE = "gradio.component_meta"


class _LoaderWithoutStubs(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.create_or_modify_pyi = _write_no_stub  # type: ignore[attr-defined]


class _FinderWithoutStubs(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin is None:
            return found
        loader = _LoaderWithoutStubs(fullname, found.origin)
        return spec_from_file_location(fullname, found.origin, loader=loader)


def _write_no_stub(*args: Any) -> None:
    """Stands in for `gradio.component_meta.create_or_modify_pyi`."""


_finder = _FinderWithoutStubs()
sys.meta_path.insert(0, _finder)
try:
    import gradio  # noqa: F401
    from gradio.routes import App
finally:
    sys.meta_path.remove(_finder)


@contextmanager
def without_apps() -> Iterator[None]:
    """For building pages that `gr.mount_gradio_app` serves afterwards.

    At the end of each page Gradio builds a web application of all pages so far, and replaces it at
    the end of the next page. That takes 60 ms or more each time, and mounting builds its own.
    """
    create_app = App.create_app
    App.create_app = staticmethod(_create_no_app)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        App.create_app = staticmethod(create_app)  # type: ignore[method-assign]


def _create_no_app(*args: Any, **kwargs: Any) -> None:
    """Stands in for `gradio.routes.App.create_app`."""
