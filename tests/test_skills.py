"""Skills: every rule on answers that follow it and answers that do not, and the change by hand."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorarlhf.backbone.base import Backbone
from lorarlhf.cli.main import main
from lorarlhf.evaluation.eval_results import skills_as_text
from lorarlhf.evaluation.skills import ALL, Task, compare_skills, passes, read_tasks
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import write_jsonl
from lorarlhf.runtime.run import Run


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"number": 12}, "7 + 5 = 12", "7 and 12 are 19"),
        ({"number": 12}, "12, because 7 and 5 make that. I had 5 of 7.", "a dozen"),
        ({"number": 8}, "She has eight apples left.", "She has 14 apples, 6 fewer."),
        ({"number": 32}, "2,4,8,16,32", "2,4,8,16"),
        ({"sentences": [2, 2]}, "今天下雨。我喜欢雨。", "今天下雨。"),
        ({"sentences": [1, 1]}, 'She said "It rains."', "It rains. It pours."),
        ({"number": 1000}, "1,000", "100"),
        ({"number": 0.5}, "It is 0.5.", "It is 0.25."),
        ({"contains": ["Paris"]}, "It is paris.", "Comparison"),
        ({"contains": ["7", "seven"]}, "There are Seven.", "There are 17."),
        ({"regex": r"^\s*yes\b"}, "Yes.", "Oh yes"),
        ({"regex": r"\bPEACE\b", "cased": True}, "PEACE", "peace"),
        ({"json": {"name": "Ann"}}, '```json\n{"name": "Ann"}\n```', 'It is {"name": "Ann"}'),
        ({"words": [1, 2]}, " one two ", "one two three"),
        ({"lines": [3, 3]}, "cat\n\ndog\ncow", "cat, dog, cow"),
        ({"sentences": [2, 2]}, "It is wet. It is wide!", "It is wet"),
        (
            {"contains": ["honey"], "words": [1, 5]},
            "They make honey.",
            "Bees make wax and much honey.",
        ),
    ],
)
def test_the_rules(check: dict[str, Any], good: str, bad: str) -> None:
    assert passes(good, check) and not passes(bad, check)


def test_the_bundled_hundred() -> None:
    tasks = read_tasks()
    assert Counter(task.kind for task in tasks) == dict.fromkeys(
        ("arithmetic", "words", "facts", "format", "nonsense"), 20
    )
    assert len({task.prompt for task in tasks}) == 100
    assert not any(passes("", task.check) for task in tasks)
    silly = "Purple elephants sing loudly in the garden while the clouds paint themselves."
    assert sum(passes(silly, task.check) for task in tasks) <= 2
    repeated = [task.prompt for task in tasks if passes(task.prompt, task.check)]
    assert set(repeated) <= {
        "Write one sentence about rain.",
        "End your answer with a question mark. What could we cook tonight?",
    }


@pytest.mark.parametrize(
    "answer",
    [
        "I don't know that, sorry: there is no such thing.",
        "I don’t know.",
        "There is no such country.",
        "The Earth has only one moon.",
        "Dinosaurs didn't build the pyramids.",
        "Nobody has walked on the Sun.",
        "Nothing is north of the North Pole.",
        "I can't see what you are holding.",
        "That is undefined.",
    ],
)
def test_nonsense_is_refused(answer: str) -> None:
    nonsense = [task for task in read_tasks() if task.kind == "nonsense"]
    assert all(passes(answer, t.check) for t in nonsense if "corners" not in t.prompt)


@pytest.mark.parametrize(
    "answer",
    [
        "The capital is Blorp, and Blarp lies north of it.",
        "You had eggs. Do not skip breakfast!",
        "A circle has 4 corners, not 3.",
        "King George ruled it.",
        "It is about two hundred tons.",
    ],
)
def test_nonsense_is_not_answered(answer: str) -> None:
    nonsense = [task for task in read_tasks() if task.kind == "nonsense"]
    assert not any(passes(answer, task.check) for task in nonsense)


RIGHT = {
    "What is a young dog called?": "A pup.",
    "Spell the word dog backwards.": "g-o-d",
    "List three colours, separated by commas and nothing else.": "red,green,blue",
    "Write the date of Christmas Eve as day and month.": "24 Dec",
    "Which number is larger, 3 or 8?": "The larger one is 8.",
    "Write a numbered list of two fruits.": "1. Apple\n2. Pear",
    "Write a list of three vegetables with a dash before each.": "- Leek\n- Peas\n- Kale",
    "Write the numbers from 1 to 5, separated by spaces.": "1 2 3 4 5",
    "Put the word moon in quotation marks and write nothing else.": "“moon”.",
    "Which of these is not a fruit: apple, hammer, pear, plum?": "The hammer is not a fruit.",
}
WRONG = {
    "Write the word CAT in lower case.": "CAT",
    "Which number is larger, 3 or 8?": "3 is larger than 8.",
    "Write a numbered list of two fruits.": "1. Apple\n2. Pear\n3. Plum",
    "Write a list of three vegetables with a dash before each.": "- a\n- b\n- c\n- d",
    "Write the numbers from 1 to 5, separated by spaces.": "1 2 3 4 5 6 7",
    "Put the word moon in quotation marks and write nothing else.": '"moon.',
    "List three animals, one on each line and nothing else.": "Here are three animals for you, as "
    "you wished:\ncat\ndog",
}


def test_single_tasks() -> None:
    checks = {task.prompt: task.check for task in read_tasks()}
    assert [prompt for prompt, said in RIGHT.items() if not passes(said, checks[prompt])] == []
    assert [prompt for prompt, said in WRONG.items() if passes(said, checks[prompt])] == []


def test_changes_by_hand() -> None:
    tasks = [Task("a" if n < 4 else "b", "?", {"contains": ["yes"]}) for n in range(8)]
    before = ["yes"] * 4 + ["no", "no", "yes", "yes"]
    after = ["no"] * 4 + ["yes", "no", "yes", "yes"]
    first, second, whole = compare_skills(tasks, before, after)
    assert (first.kind, first.before, first.after, first.change) == ("a", 4, 0, -1.0)
    assert (second.before, second.after, second.change) == (2, 3, 0.25)
    assert (whole.kind, whole.tasks, whole.before, whole.after) == (ALL, 8, 6, 3)
    assert whole.low < whole.change == -0.375 < whole.high
    same = compare_skills(tasks, before, before)[-1]
    assert same.change == 0 and same.low == -same.high < 0 and same.p == 1.0
    assert whole.p == pytest.approx(2 * (5 + 1) / 32)  # four lost and one gained


@pytest.mark.parametrize(("lost", "sure"), [(4, False), (5, False), (8, True)])
def test_a_few_lost_tasks_are_no_evidence(lost: int, sure: bool) -> None:
    tasks = [Task("a", "?", {"contains": ["yes"]})] * 100
    after = ["no"] * lost + ["yes"] * (100 - lost)
    (_, whole) = compare_skills(tasks, ["yes"] * 100, after)
    assert ("has forgotten something" in skills_as_text([whole])) == sure


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"kind": "a", "prompt": "?"}, '"check" is missing'),
        ({"kind": "a", "prompt": "?", "check": {"size": 3}}, "there is no check size"),
        ({"kind": "a", "prompt": "?", "check": {"cased": True}}, "the check has no rule"),
        ({"kind": "a", "prompt": "?", "check": {"number": "12"}}, "number is a number, and not"),
        ({"kind": "a", "prompt": "?", "check": {"contains": "Paris"}}, "contains is a list"),
        ({"kind": "a", "prompt": "?", "check": {"regex": "("}}, "is a regular expression"),
        ({"kind": "a", "prompt": "?", "check": {"words": 3}}, "is two whole numbers"),
    ],
)
def test_mistakes_in_a_file_of_tasks(tmp_path: Path, row: dict[str, Any], error: str) -> None:
    write_jsonl(tmp_path / "tasks.jsonl", [row])
    with pytest.raises(UserError, match=error):
        read_tasks(tmp_path / "tasks.jsonl")


# ---- the command


def test_the_command(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "run", "sft", {"seed": 0, "compute_dtype": "float32"})
    run.base(tiny)
    for weight in tiny.parameters_of("policy"):
        weight.data.normal_(std=0.3)
    tiny.save("policy", run.folder / "adapters" / "policy")
    rows = [{"kind": "form", "prompt": f"Say {n}.", "check": {"regex": "."}} for n in range(3)]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    words = ["eval", str(run.folder), "--tasks", str(tmp_path / "tasks.jsonl")]
    words += ["--max-new-tokens", "4", "--skills-only", "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in told["skills"]] == ["form", "all"]
    assert len(told["tasks"]) == 3
    first = told["tasks"][0]["answers"]
    assert first["base"] != first["run"]
    assert main(words) == 0
    assert "No change that is larger than chance." in capsys.readouterr().out


def test_too_much_forgotten_ends_with_status_1(
    tiny: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lorarlhf.backbone.generation import Completion
    from lorarlhf.cli.eval_answers import Answering

    run = Run(tmp_path / "run", "sft", {"seed": 0, "compute_dtype": "float32"})
    run.base(tiny)
    tiny.save("policy", run.folder / "adapters" / "policy")
    said = {"base": "yes", "policy": "no"}

    def sample(self: Answering, role: str, title: str, encoded: list, *rest: Any) -> list:
        return [Completion(said[role], [5], True)] * len(encoded)

    monkeypatch.setattr(Answering, "_sample", sample)
    rows = [{"kind": "a", "prompt": f"{n}?", "check": {"contains": ["yes"]}} for n in range(30)]
    write_jsonl(tmp_path / "tasks.jsonl", rows)
    words = ["eval", str(run.folder), "--tasks", str(tmp_path / "tasks.jsonl")]
    words += ["--skills-only", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "has forgotten something" in capsys.readouterr().out
    assert main([*words, "--limit-regressions", "0.1"]) == 1
    assert "More was forgotten than --limit-regressions 0.1 allows: run." in capsys.readouterr().out
    assert main([*words, "--max-new-tokens", "0"]) == 2
    assert "--max-new-tokens is 1 or more" in capsys.readouterr().err
    assert main([*words, "--limit-regressions", "2"]) == 2
    assert "is a share from 0 to 1" in capsys.readouterr().err
