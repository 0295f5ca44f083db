"""The reward and the judge of the PPO runs."""


def length(prompts, completions, **columns):
    return [float(len(completion[0]["content"])) for completion in completions]


def short(prompts, completions, **columns):
    return [-float(len(completion[0]["content"])) for completion in completions]
