"""The command `recipe`: the recipes for people without a clone of the repository."""

import ast
import contextlib
import difflib
import shutil
from argparse import Namespace
from importlib import resources
from pathlib import Path
from typing import Any

from lorarlhf.cli.result import Result, table
from lorarlhf.runtime.errors import UserError


def recipes() -> dict[str, Path]:
    """The recipes by name, in the order of use."""
    folders: list[Any] = [Path(__file__).parents[2] / "recipes"]
    # A checkout that is not installed does not have this package, but it has the recipes.
    with contextlib.suppress(ImportError):
        folders.insert(0, resources.files("lorarlhf._recipes"))
    for folder in folders:
        found = {Path(str(file)).stem: Path(str(file)) for file in _scripts(folder)}
        if found:
            return dict(sorted(found.items()))
    raise UserError("The recipes are missing: install lorarlhf again.")


def _scripts(folder: Any) -> list[Any]:
    if not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if file.name[0].isdigit() and file.name[-3:] == ".py"]


def recipe(args: Namespace) -> Result:
    """`list` or `copy`."""
    if args.action == "list":
        if args.name is not None:
            raise UserError(
                "`lorarlhf recipe list` takes no name. To copy a recipe: lorarlhf recipe copy "
                f"{args.name}"
            )
        return _list()
    if args.name is None:
        raise UserError(f"Name the recipe to copy: {', '.join(recipes())}.")
    return _copy(args.name, args.to)


def _list() -> Result:
    rows = [(name, _summary(file)) for name, file in recipes().items()]
    text = f"{table(rows)}\nCopy one with `lorarlhf recipe copy NAME`, and run it with Python."
    return Result([{"name": name, "summary": summary} for name, summary in rows], text)


def _summary(file: Path) -> str:
    """The first line of a recipe's docstring."""
    found = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return found.partition("\n")[0]


def _copy(name: str, to: str | None) -> Result:
    known = recipes()
    name = Path(name).name.removesuffix(".py")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
        raise UserError(f"There is no recipe {name}. {hint}")
    # The folder that the recipes name when they say which one to run next.
    place = Path(to).expanduser() if to else Path("recipes") / f"{name}.py"
    if place.is_dir():
        place /= f"{name}.py"
    if place.exists():
        raise UserError(f"{place} exists already. Name another file: recipe copy {name} FILE.")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known[name], place)
    except OSError as error:
        raise UserError(
            f"{place} can't be written ({error.strerror}). Name another file: recipe copy {name} "
            "FILE."
        ) from error
    text = f"{place} is your copy: change the constants at its top, and run python {place}"
    return Result({"recipe": name, "file": str(place)}, text)
