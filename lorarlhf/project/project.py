"""A project's folder: its settings, prompts, votes and runs, each a file that people can read."""

import json
import re
import shutil
import time
from collections.abc import Container
from pathlib import Path

from lorarlhf.data.readers import bundled, read_prompts
from lorarlhf.preferences.store import Store
from lorarlhf.project.run_labels import read_label
from lorarlhf.project.settings_sources import SettingValue, from_file
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import check_name, move, read_json

PROJECT, PROMPTS, VOTES, RUNS = "project.yaml", "prompts.jsonl", "preferences.sqlite", "runs"
DELETED = ".deleted"
"""In the folder of the runs: an empty folder for each deleted run. Votes name the models that wrote
their answers, so the number of a deleted run is never used again."""
KEYS = (
    *("base", "bits", "adapter_layers", "lora_rank", "lora_alpha", "chat_template", "thinking"),
    *("seed", "method"),
)
_TEMPLATE = """\
# A lorarlhf project. The training commands, chat and score take its folder: lorarlhf reward {name}
# These settings apply to its runs. The run that one starts from, --config and --set override them.

# smollm2-135m, a folder, a GGUF file, or a Hugging Face id. Adapters fit only the base that they
# were trained on.
base: {base}

# 4 (smallest), 8 or 16. All runs of a project should share it.
bits: {bits}

# upper-half (a good choice), all, or a number of layers from the top.
adapter_layers: {adapter_layers}

# Of everything that is drawn at random.
seed: 0

# For a base without a chat template: a Jinja file.
{template}

# Some bases can write their thoughts before an answer. They are rated and trained with it.
# thinking: true

# How `lorarlhf round` tunes the policy: ppo (the default), rloo, grpo, dpo, orpo, kto or sft.
# method: ppo
"""
_NO_TEMPLATE = "# chat_template: chat.jinja"
_RUN = re.compile(r"(\d{4,})-(\w+)")


class Project:
    """A project's folder, as `create` made it.

    Args:
        folder: with a `project.yaml`.

    Raises:
        UserError: there is no project in it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not is_project(self.folder):
            raise UserError(
                f"{folder} is not a project: it has no {PROJECT}. Make one with `lorarlhf new "
                f"{folder}`."
            )

    @property
    def settings_file(self) -> Path:
        """The file with the settings that hold for all runs."""
        return self.folder / PROJECT

    @property
    def prompts(self) -> Path:
        """The file with the prompts of PPO and of the rating pages."""
        return self.folder / PROMPTS

    def store(self) -> Store:
        """The votes."""
        return Store(self.folder / VOTES)

    def runs(self) -> list[Path]:
        """The runs, the newest first."""
        found = [p for p in (self.folder / RUNS).glob("*") if _RUN.fullmatch(p.name)]
        return sorted(found, key=lambda p: int(p.name.split("-")[0]), reverse=True)

    def kept_runs(self) -> list[Path]:
        """The runs that nobody has dropped, the newest first."""
        return [run for run in self.runs() if not read_label(run).dropped]

    def evaluations(self) -> list[Path]:
        """The results of `eval`, also those of the rounds."""
        patterns = ("eval*/eval.json", "rounds/*/eval/eval.json")
        return [file for pattern in patterns for file in self.folder.glob(pattern)]

    def next_run(self, stage: str) -> Path:
        """Make the folder for a new run, for example `runs/0007-ppo`, and reserve its number."""
        while True:
            deleted = (self.folder / RUNS / DELETED).glob("*")
            used = [run.name for run in (*self.runs(), *deleted) if _RUN.fullmatch(run.name)]
            number = 1 + max((int(name.split("-")[0]) for name in used), default=0)
            taken = self.folder / RUNS / f"{number:04d}"
            try:
                # The number alone, so two commands of different stages can't take the same one.
                taken.mkdir(parents=True)
            except FileExistsError:
                time.sleep(0.01)
                continue
            if any(taken.parent.glob(f"{number:04d}-*")):  # taken and named in between
                taken.rmdir()
                continue
            run = taken.with_name(f"{number:04d}-{stage}")
            move(taken, run)
            return run

    def unfinished(self, stage: str) -> Path | None:
        """The newest run of a stage that is not dropped, if it is not done."""
        ours = [run for run in self.kept_runs() if run.name.endswith(f"-{stage}")]
        ours = [run for run in ours if (run / "run.json").is_file()]
        done = bool(ours) and read_json(ours[0] / "run.json").get("status") == "done"
        return ours[0] if ours and not done else None

    def newest_with(
        self, role: str, stages: tuple[str, ...] = (), without: Container[Path] = ()
    ) -> Path | None:
        """The newest finished run that saved a role and is not dropped.

        Args:
            stages: only runs of these; of all, if none are named.
            without: runs that do not count.
        """
        for run in self.runs():
            if run in without:
                continue
            about = read_json(run / "run.json")
            trained = not stages or about.get("stage") in stages
            saved = (run / "adapters" / role / "adapter_config.json").is_file()
            if trained and saved and about.get("status") == "done" and not read_label(run).dropped:
                return run
        return None


def is_project(folder: str | Path) -> bool:
    """Whether a folder is a project."""
    return (Path(folder).expanduser() / PROJECT).is_file()


def create(
    folder: str | Path,
    *,
    base: str = "smollm2-135m",
    bits: int = 4,
    adapter_layers: str = "upper-half",
    prompts: str | Path | None = None,
    chat_template: str | Path | None = None,
) -> Project:
    """Make a project: `project.yaml` with comments, prompts, and an empty store of votes.

    Args:
        base: the path of a file is written as an absolute one.
        chat_template: a Jinja file, for a base without a template of its own.
        prompts: a file of prompts to begin with. Default: the everyday prompts in the package.

    Raises:
        UserError: the folder is already a project, it can't be written, or the prompts can't
            be read; there is no such chat template.
    """
    place = Path(folder).expanduser()
    if is_project(place):
        raise UserError(f"{folder} is a project already; nothing was changed.")
    check_name(place)
    template = Path(chat_template).expanduser().resolve() if chat_template else None
    if template is not None and not template.is_file():
        raise UserError(f"There is no chat template file {template}. Name a Jinja file.")
    source = Path(prompts) if prompts else bundled("prompts")
    rows = read_prompts(source)
    try:
        (place / RUNS).mkdir(parents=True, exist_ok=True)
        if not (place / PROMPTS).exists():
            if source.suffix == ".jsonl":
                shutil.copyfile(source, place / PROMPTS)
            else:
                from lorarlhf.runtime.files import write_jsonl

                write_jsonl(place / PROMPTS, rows)
        Store(place / VOTES).close()
        text = _TEMPLATE.format(
            name=place.resolve().name,
            base=json.dumps(_absolute(base)),
            bits=bits,
            adapter_layers=json.dumps(adapter_layers),
            template=f"chat_template: {json.dumps(str(template))}" if template else _NO_TEMPLATE,
        )
        (place / PROJECT).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The project {folder} can't be made ({error.strerror}). Name another folder."
        ) from error
    return Project(place)


def _absolute(base: str) -> str:
    """A base's name; the path of a file in a form that holds from every folder."""
    path = Path(base).expanduser()
    return str(path.resolve()) if path.is_file() else base


def project_settings(project: Project) -> list[SettingValue]:
    """The settings in `project.yaml`.

    Raises:
        UserError: a key that is not in `KEYS`, or what `from_file` raises.
    """
    found = [_placed(item, project) for item in from_file(project.settings_file)]
    for item in found:
        if item.name not in KEYS:
            raise UserError(
                f"{item.where}: {item.name} does not belong in a project, which holds "
                f"{', '.join(KEYS)}. Put it in a file for --config."
            )
    return found


def _placed(item: SettingValue, project: Project) -> SettingValue:
    """The path of a chat template is relative to the project's folder."""
    if item.name != "chat_template" or not isinstance(item.value, str):
        return item
    return SettingValue(item.name, str(project.folder / item.value), item.where)
