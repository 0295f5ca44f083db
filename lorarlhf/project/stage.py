"""`Stage`: one record with all that the other folders need to know about a training stage.

The records themselves are in `lorarlhf.stages.table`, since they name that folder's code. A record
holds only names of modules and functions; they are imported when they are needed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import import_module
from typing import Any

from lorarlhf.runtime.setting_types import Setting, settings_of

Row = dict[str, Any]


def load_named(place: str) -> Any:
    """What `package.module:name` names, its module imported now."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Attributes:
        name: of the command, of the folders of its runs and of its section in settings files.
        summary: one line for `--help`.
        rows: what it learns from, in words: for messages and for `--help`.
        reader: reads a file of those rows.
        export: the form of a project's votes that it learns from; "" where it reads the prompts.
        settings: its settings class; `trl` in it holds fields of TRL's configuration.
        config: TRL's configuration class.
        arguments: makes that configuration from a placement and the settings.
        run: trains, from a backbone, a run and prepared inputs.
        keys: the names of its settings, for `--help`; a test compares them with the classes.
        check: checks all rows together before anything is loaded; "" if the stage has no check.
        hold_out: splits rows into training and held-out rows, with none in both; "" if the stage
            has no split.
        rates: chooses the learning rates that the settings leave open; "" if none can be open.
        configs: TRL's classes for other values of the setting `algorithm`, by value.
        config_keys: the names of the settings that count with one of `configs`.
        rewarded: whether it takes rewards and judges, and prompts instead of answers.
        rounds: whether it can also learn, in rounds, from answers that a reward role labels.
        strengths: whether its loss uses how strong a preference is (the rows' `margin`).
        trains: the role that learns.
        starts_from_sft: whether it starts from the project's newest SFT run.
        reference: whether the policy that it starts from becomes the reference.
        smallest_micro_batch: the smallest number of rows in a forward.
    """

    name: str
    summary: str
    rows: str
    reader: str
    export: str
    settings: str
    config: str
    arguments: str
    run: str
    keys: str
    check: str = ""
    hold_out: str = ""
    rates: str = ""
    configs: Mapping[str, str] = field(default_factory=dict, hash=False)
    config_keys: str = ""
    rewarded: bool = False
    rounds: bool = False
    strengths: bool = False
    trains: str = "policy"
    starts_from_sft: bool = True
    reference: bool = False
    smallest_micro_batch: int = 1

    @property
    def data_option(self) -> str:
        """The option that names the rows' file."""
        return "--prompts" if self.rewarded else "--data"

    def read(self, path: str) -> list[Row]:
        """The rows of a file. Raises a `UserError` that names the line of a bad one."""
        return load_named(self.reader)(path)

    def check_rows(self, rows: Sequence[Row]) -> None:
        """See that rows, each right by itself, can be learned from. Raises a `UserError`."""
        if self.check:
            load_named(self.check)(rows)

    def settings_class(self) -> Any:
        """The dataclass of the stage's settings."""
        return load_named(self.settings)

    def config_class(self, algorithm: str = "") -> Any:
        """TRL's configuration class, for the algorithm that the settings name."""
        return load_named(self.configs.get(algorithm, self.config))

    def keys_for(self, algorithm: str = "") -> list[str]:
        """The names of the settings that count: all, or with one of `configs` some of them."""
        named = self.config_keys if algorithm in self.configs else self.keys
        return [key.strip() for key in named.split(",")]

    def own_settings(self) -> list[Setting]:
        """The settings of its own classes; those of TRL's configuration are under `trl`."""
        classes = [self.settings_class()]
        if self.config.startswith("lorarlhf."):
            classes.insert(0, self.config_class())
        known = [known for kind in classes for known in settings_of(kind)]
        return [known for known in known if known.name not in ("config", "trl")]

    def make_settings(self, own: dict[str, Any], trl: dict[str, Any]) -> Any:
        """The stage's settings from values by key.

        Keys that its class does not have are fields of TRL's configuration, under `config`.
        """
        kind = self.settings_class()
        names = {field.name for field in fields(kind)}
        rest = {name: value for name, value in own.items() if name not in names}
        mine = {name: value for name, value in own.items() if name in names}
        return kind(**mine, **({"config": rest} if rest else {}), trl=trl)

    def make_arguments(self, placement: Any, settings: Any) -> Any:
        """TRL's configuration. Raises `UserError` or `ValueError` for values it does not take."""
        return load_named(self.arguments)(placement, settings)

    def fill_in_rates(
        self, args: Any, settings: Any, width: int, rows: Sequence[Row]
    ) -> dict[str, float]:
        """Choose the learning rates that the settings leave open, in a stage with `rates`.

        Args:
            args: TRL's configuration, whose `learning_rate` is set.
            width: the base's hidden size.
            rows: what is learned from.

        Returns:
            the settings that were open, with their values.
        """
        found: dict[str, float] = load_named(self.rates)(args, settings, width, rows)
        return found

    def train(self, backbone: Any, run: Any, inputs: Any) -> Row:
        """Run the stage; returns its summary."""
        return load_named(self.run)(backbone, run, inputs)

    def split(
        self, rows: Sequence[Row], eval_rows: Sequence[Row] | None, settings: Any, seed: int
    ) -> tuple[Sequence[Row], Sequence[Row] | None]:
        """(rows to learn from, held-out rows or None)."""
        if not self.hold_out:
            return rows, eval_rows
        divide: Callable[..., Any] = load_named(self.hold_out)
        return divide(rows, eval_rows, settings, seed)
