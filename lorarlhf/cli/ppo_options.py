"""The options of the command `ppo`: rewards, judges, and checks of which options go together."""

from lorarlhf.cli.request import TrainRequest
from lorarlhf.project.lineage import SourceRun
from lorarlhf.project.settings import Settings
from lorarlhf.rewards.functions import load_function
from lorarlhf.runtime import distributed
from lorarlhf.runtime.errors import UserError
from lorarlhf.runtime.files import read_json
from lorarlhf.stages.inputs import RewardSpec


def read_rewards(request: TrainRequest) -> RewardSpec:
    """Load the functions that the options name, before the base is loaded.

    The reward models that `--reward-model` names are loaded after it, and come last.

    Raises:
        UserError: there is no reward, or a function or file does not exist.
    """
    if not (request.reward or request.reward_function or request.reward_model):
        raise UserError(
            "PPO needs a reward: --reward RUN for a trained reward role, --reward-function "
            "FILE.py:NAME for a Python function, or --reward-model FOLDER; or several of them."
        )
    return RewardSpec(
        rewards=["reward"] * bool(request.reward)
        + [load_function(name) for name in request.reward_function],
        judges=[load_function(name) for name in request.judge_function],
    )


def check_rewards(request: TrainRequest, settings: Settings, spec: RewardSpec) -> None:
    """Check that the settings fit the rewards.

    Raises:
        UserError: the wrong number of weights, settings that RLOO and GRPO do not use, or settings
            or judges without the held-out prompts, the judge or the KL budget that they need.
    """
    own = settings.own
    sources, weights = len(spec.rewards) + len(request.reward_model), own["reward_weights"]
    numbers = all(isinstance(w, int | float) and not isinstance(w, bool) for w in weights or [])
    if weights is not None and (len(weights) != sources or not numbers):
        raise UserError(
            f"reward_weights is a list of {sources} numbers here, one a reward in the order role, "
            f"functions, models; found {weights}."
        )
    from lorarlhf.ppo.heldout import missing

    add = ("add --eval FILE", "add --judge-function FILE.py:NAME")
    lack = missing(own, request.eval is not None, bool(request.judge_function), add)
    if lack:
        raise UserError(lack)
    if own["algorithm"] != "ppo":
        _check_critic_free(request, settings)
    elif "num_generations" in settings.given:
        raise UserError(
            "num_generations is for the algorithms rloo and grpo; PPO answers each prompt once."
        )


def check_pessimism(settings: Settings, reward: SourceRun | None) -> None:
    """Check that `reward_pessimism` above 0 knows the deviations that it subtracts.

    Args:
        reward: the run of the reward role.

    Raises:
        UserError: there is none, it has no votes, or its role scores the last token.
    """
    if not settings.own["reward_pessimism"]:
        return
    if reward is None:
        raise UserError(
            "reward_pessimism is about the reward role: name its run with --reward RUN, or set it "
            "to 0."
        )
    from lorarlhf.rewards.deviation import check_pooling, votes_of

    note = read_json(reward.adapter / "lorarlhf.json")
    check_pooling(note.get("pooling", "mean" if note else "last"), votes_of(reward.adapter))


def _check_critic_free(request: TrainRequest, settings: Settings) -> None:
    own = settings.own
    start = f"algorithm {own['algorithm']}"
    used = request.stage.keys_for(own["algorithm"])
    unused = sorted(name for name in settings.given & own.keys() if name not in used)
    if unused:
        raise UserError(f"{start} has no critic and does not use {', '.join(unused)}.")
    if distributed.world_size() > 1:
        raise UserError(f"{start} runs in one process; several share the work of PPO.")
    if request.eval is not None:
        raise UserError(f"{start} measures nothing on held-out prompts: leave out --eval.")
    if own["kl_coef"] <= 0:
        raise UserError(f"kl_coef is above 0 with {start}: without it TRL measures no KL.")
    size, generations = own["rollout_batch_size"], own["num_generations"]
    if generations < 2 or size % generations:
        raise UserError(
            f"num_generations is 2 or more and divides rollout_batch_size ({size}), found "
            f"{generations}."
        )


def check_vllm(settings: Settings, base_path: str) -> None:
    """Check that the vLLM server answers, if one is used for sampling.

    Args:
        base_path: the folder or id that the server has to have loaded.

    Raises:
        UserError: no server answers, or it has loaded another model.
    """
    own = settings.own
    if own["generation"] == "vllm":
        from lorarlhf.ppo.vllm_server import connect

        connect(own["vllm_server"], base_path, own["max_prompt_tokens"] + own["max_new_tokens"])
