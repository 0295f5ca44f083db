"""`lorarlhf recipe`: the recipes listed and copied, without a clone."""

import json
from pathlib import Path

import pytest

from lorarlhf.cli.main import main
from lorarlhf.cli.recipes import recipes

FOLDER = Path(__file__).parents[1] / "recipes"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["recipe", *words])
    return (status, *capsys.readouterr())


def test_the_list_has_every_recipe_in_the_order_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list")
    names = [line.split()[0] for line in out.splitlines()[:-1]]
    assert status == 0 and names == sorted(file.stem for file in FOLDER.glob("[0-9]*.py"))
    assert "1_supervised" in out and "Step 1 of 7: supervised fine-tuning" in out
    _, out, _ = run(capsys, "list", "--json")
    assert [row["name"] for row in json.loads(out)] == names
    steps = [row["summary"].partition(" of ")[0] for row in json.loads(out)]
    assert steps == [f"Step {name[0]}" for name in names]
    assert {row["summary"].split(" of ")[1][0] for row in json.loads(out)} == {names[-1][0]}


def test_a_copy_is_the_recipe_and_is_never_written_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = (FOLDER / "3_dpo.py").read_bytes()
    status, out, _ = run(capsys, "copy", "3_dpo")
    place = Path("recipes") / "3_dpo.py"  # where the recipes themselves say that they are
    assert status == 0 and place.read_bytes() == source and str(place) in out
    status, _, err = run(capsys, "copy", "3_dpo")
    assert status == 2 and f"{place} exists already" in err
    for to, made in (("mine/tune.py", "mine/tune.py"), ("mine", "mine/3_dpo.py")):
        status, out, _ = run(capsys, "copy", "3_dpo.py", to, "--json")
        assert json.loads(out) == {"recipe": "3_dpo", "file": str(Path(made))}
        assert (tmp_path / made).read_bytes() == source


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("copy", "3_dop"), "There is no recipe 3_dop. Did you mean 3_dpo?"),
        (("copy", "zzz"), "There is no recipe zzz. There are 1_supervised, "),
        (("copy",), "Name the recipe to copy: 1_supervised, "),
        (("list", "3_dpo"), "recipe copy 3_dpo"),
        (("copy", "3_dpo", "file/x.py"), "x.py can't be written"),
    ],
)
def test_mistakes_say_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "file").write_text("")
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "") and said in err
    assert not (tmp_path / "recipes").exists()


def test_the_recipes_are_those_of_the_repository() -> None:
    assert {file.resolve().parent for file in recipes().values()} == {FOLDER.resolve()}
