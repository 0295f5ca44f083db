"""The training stages, one record each. Nothing is imported until a record's code is needed."""

from lorarlhf.project.stage import Stage

PAIRS, READ_PAIRS = "preference pairs", "lorarlhf.data.readers:read_preferences"
HOLD_OUT = "lorarlhf.stages.held_out:hold_out"
DIRECT_KEYS = (
    "epochs, learning_rate, batch_size, micro_batch_size, max_tokens, beta, holdout, evaluations, "
    "save_steps, plain, report_to"
)
PPO_KEYS = (
    "updates, rollout_batch_size, num_ppo_epochs, num_minibatches, micro_batch_size, "
    "max_prompt_tokens, max_new_tokens, temperature, generation, vllm_server, learning_rate, "
    "value_learning_rate, linear_lr_decay, kl_coef, kl_target, kl_horizon, kl_budget, gamma, "
    "gae_lambda, clip_range, max_ratio, max_approx_kl, value_clip_range, vf_coef, value_adapter, "
    "policy_layers, value_layers, critic_warmup, missing_eos_penalty, score_clip, "
    "normalize_scores, whiten_rewards, reward_pessimism, adam_epsilon, gradient_checkpointing, "
    "logging_steps, save_steps, save_total_limit, eval_steps, eval_kl_steps, keep_best_by, "
    "report_to, algorithm, num_generations, reward_weights, plain"
)
CRITIC_FREE_KEYS = (
    "updates, rollout_batch_size, num_ppo_epochs, num_minibatches, micro_batch_size, "
    "max_prompt_tokens, max_new_tokens, temperature, learning_rate, linear_lr_decay, kl_coef, "
    "clip_range, reward_pessimism, gradient_checkpointing, save_steps, report_to, algorithm, "
    "num_generations, reward_weights, plain"
)
"""PPO's settings that have a meaning without a critic."""
_LIST = (
    Stage(
        "sft",
        "supervised tuning of the policy on demonstrations",
        rows="demonstrations",
        reader="lorarlhf.data.readers:read_demonstrations",
        export="demonstrations",
        settings="lorarlhf.stages.sft:SFTSettings",
        config="trl:SFTConfig",
        arguments="lorarlhf.stages.sft:arguments",
        run="lorarlhf.stages.sft:run_sft",
        rates="lorarlhf.stages.step_size:fill_in_sft_rate",
        keys="epochs, learning_rate, batch_size, micro_batch_size, max_tokens, save_steps, plain, "
        "assistant_only, report_to",
        starts_from_sft=False,
    ),
    Stage(
        "reward",
        "a reward role from preference pairs",
        rows=PAIRS,
        reader=READ_PAIRS,
        export="trl",
        settings="lorarlhf.stages.reward_model:RewardSettings",
        config="trl:RewardConfig",
        arguments="lorarlhf.stages.reward_model:arguments",
        run="lorarlhf.stages.reward_model:run_reward_model",
        keys="pooling, epochs, learning_rate, batch_size, micro_batch_size, holdout, evaluations, "
        "center_rewards_coefficient, save_steps, plain, report_to",
        hold_out="lorarlhf.stages.reward_model:hold_out",
        strengths=True,
        trains="reward",
    ),
    Stage(
        "ppo",
        "tune the policy against a reward role or Python functions",
        rows="prompts",
        reader="lorarlhf.data.readers:read_prompts",
        export="",
        settings="lorarlhf.stages.inputs:PPOSettings",
        config="lorarlhf.ppo.config:PPOConfig",
        configs={"rloo": "trl:RLOOConfig", "grpo": "trl:GRPOConfig"},
        config_keys=CRITIC_FREE_KEYS,
        arguments="lorarlhf.stages.ppo:arguments",
        run="lorarlhf.stages.ppo:run_ppo",
        keys=PPO_KEYS,
        hold_out="lorarlhf.stages.inputs:hold_out_prompts",
        rewarded=True,
        reference=True,
    ),
    Stage(
        "dpo",
        "tune the policy on preference pairs, without a reward role",
        rows=PAIRS,
        reader=READ_PAIRS,
        export="trl",
        settings="lorarlhf.stages.round_inputs:IteratedDPOSettings",
        config="trl:DPOConfig",
        arguments="lorarlhf.stages.dpo_orpo:dpo_arguments",
        run="lorarlhf.stages.iterated_dpo:run_dpo_rounds",
        rates="lorarlhf.stages.step_size:fill_in_pair_rate",
        keys=f"{DIRECT_KEYS}, sft_weight, noise, rounds, round_prompts, num_generations, "
        "max_prompt_tokens, max_new_tokens, temperature, least_gap",
        hold_out=HOLD_OUT,
        rounds=True,
        reference=True,
    ),
    Stage(
        "orpo",
        "tune the policy on preference pairs, without a reference",
        rows=PAIRS,
        reader=READ_PAIRS,
        export="trl",
        settings="lorarlhf.stages.dpo_orpo:ORPOSettings",
        config="trl.experimental.orpo:ORPOConfig",
        arguments="lorarlhf.stages.dpo_orpo:orpo_arguments",
        run="lorarlhf.stages.dpo_orpo:run_orpo",
        rates="lorarlhf.stages.step_size:fill_in_pair_rate",
        check="lorarlhf.stages.dpo_orpo:check_orpo_rows",
        keys=DIRECT_KEYS,
        hold_out=HOLD_OUT,
    ),
    Stage(
        "kto",
        "tune the policy on single answers marked good or bad",
        rows="answers marked good or bad, or preference pairs",
        reader="lorarlhf.data.readers:read_labelled",
        export="kto",
        settings="lorarlhf.stages.kto:KTOSettings",
        config="trl:KTOConfig",
        arguments="lorarlhf.stages.kto:arguments",
        run="lorarlhf.stages.kto:run_kto",
        rates="lorarlhf.stages.step_size:fill_in_pair_rate",
        check="lorarlhf.stages.kto:check_labels",
        keys=DIRECT_KEYS,
        hold_out=HOLD_OUT,
        reference=True,
        smallest_micro_batch=2,
    ),
    Stage(
        "ditto",
        "tune the policy on a few edited answers, each better than all that it writes (DITTO)",
        rows="edited answers",
        reader="lorarlhf.data.readers:read_edits",
        export="edits",
        settings="lorarlhf.stages.ditto:DittoSettings",
        config="trl:DPOConfig",
        arguments="lorarlhf.stages.ditto:arguments",
        run="lorarlhf.stages.ditto:run_ditto",
        rates="lorarlhf.stages.step_size:fill_in_ditto_rates",
        keys="rounds, steps, answers, sft_epochs, sft_learning_rate, learning_rate, batch_size, "
        "micro_batch_size, max_tokens, max_new_tokens, temperature, beta, plain, report_to",
        starts_from_sft=False,
    ),
)
STAGES = {stage.name: stage for stage in _LIST}
