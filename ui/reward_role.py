"""The newest reward role of a project, as the pages ask it: scores, and what each word adds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorarlhf.preferences.records import Prompt
from lorarlhf.project.project import Project
from lorarlhf.runtime.errors import UserError
from lorarlhf_ui.engine_client import FAILED, OFF, Engine, Job
from lorarlhf_ui.heat_map import heat_maps

SECONDS = 120
"""How long a page waits for the model."""
NO_REWARD = "There is no reward role in this project yet: train one with `lorarlhf reward`."
BUSY = "The model is busy. Ask again later."


class RewardRole:
    """Asks the engine for what the newest finished reward role says.

    Args:
        project: its runs have the reward roles.
        engine: the process with the model.
    """

    def __init__(self, project: Project, engine: Engine) -> None:
        self.project, self.engine = project, engine

    def is_there(self) -> bool:
        """Whether there are a reward role and a model that can read its scores."""
        return self.engine.state not in (OFF, FAILED) and self._newest() is not None

    def adapter(self) -> Path:
        """The folder of its adapter.

        Raises:
            UserError: there is no reward role yet.
        """
        run = self._newest()
        if run is None:
            raise UserError(NO_REWARD)
        return run / "adapters" / "reward"

    def scores(self, prompt: Prompt, answers: Sequence[str]) -> list[float]:
        """The scores of answers to one prompt.

        Raises:
            UserError: there is no reward role, the engine failed, or it is busy for too long.
        """
        return _result(self.engine.scores(self.adapter(), prompt, answers))

    def heat_maps(self, prompt: Prompt, answers: Sequence[str]) -> list[str]:
        """What each word of these answers adds to their scores, as HTML; errors as in `scores`."""
        return heat_maps(_result(self.engine.shares(self.adapter(), prompt, answers)))

    def _newest(self) -> Path | None:
        return self.project.newest_with("reward")


def _result(job: Job) -> Any:
    try:
        return job.wait(SECONDS)
    except TimeoutError as error:
        raise UserError(BUSY) from error
