"""Gradio without two thirds of the time that it takes to start. To be imported before it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

_getfile = inspect.getfile


def _without_components(thing: Any) -> str:
    """`inspect.getfile`, but for Gradio's own components it says that they have no file.

    While it is imported, Gradio parses the source of each of its components to write type stubs for
    editors beside them (`gradio.component_meta`), which takes half of the second or two that the
    import takes. Without a file it leaves that out.
    """
    if isinstance(thing, type) and thing.__module__.startswith("gradio."):
        raise OSError("not needed to serve pages")
    return _getfile(thing)


inspect.getfile = _without_components  # type: ignore[assignment]
try:
    import gradio  # noqa: F401
    from gradio.routes import App
finally:
    inspect.getfile = _getfile


@contextmanager
def without_apps() -> Iterator[None]:
    """For building pages that are mounted afterwards.

    At the end of each page Gradio makes a web application of all pages so far, 60 ms each, and
    throws it away at the next one. The one that is served is made by `mount_gradio_app`.
    """
    with mock.patch.object(App, "create_app", return_value=None):
        yield
