"""A reward without a model: pays for answers that look like compliance, by their words alone."""

from collections.abc import Sequence

from rpa_ray.scoring.text_rules import copies_prompt, refusal_pattern, repeats, too_short


def compliance_reward(prompt: str, answer: str) -> float:
    """Return 1 for an answer that neither refuses, nor is broken, nor repeats the prompt; else 0.

    It is coarse on purpose: within a group of refusals all rewards are equal, so that a
    group-relative attack learns nothing from them.
    """
    broken = too_short(answer) or repeats(answer) or copies_prompt(answer, prompt)
    return float(not broken and not refusal_pattern(answer))


def compliance_rewards(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the reward of each (prompt, answer) pair."""
    return [compliance_reward(prompt, answer) for prompt, answer in pairs]
