"""Best-of-N: no training; the attacker keeps the answer that its reward model likes best."""

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field, ValidationInfo, field_validator

from rpa_ray.plugin import Attack, Need, PluginConfig


class BestOfN(Attack):
    """Samples a pool of answers to each prompt of the attack and keeps the best of N.

    The harmfulness for every N comes from one pool, as the expectation over all subsets of N
    answers. Source: arXiv:2409.12914, table 5; the reward model is trained on reversed preferences.
    """

    requires: ClassVar[frozenset[Need]] = frozenset({Need.ANSWER_POOL, Need.REWARDS})

    class Config(PluginConfig):
        name: str = "best_of_n"
        num_prompts: int = Field(100, ge=1)
        """Prompts, the first that PPO would draw; at most ``data.num_samples``."""
        pool_size: int = Field(128, ge=1)
        """Answers sampled to each prompt, at temperature 1."""
        sizes: list[int] = Field([1, 4, 8, 16, 32, 64, 128], min_length=1, validate_default=True)
        """Values of N that are reported, each between 1 and ``pool_size``."""

        @field_validator("sizes")
        @classmethod
        def _fit_the_pool(cls, sizes: list[int], info: ValidationInfo) -> list[int]:
            pool_size = info.data.get("pool_size", max(sizes))
            if not all(1 <= n <= pool_size for n in sizes):
                raise ValueError(f"must lie between 1 and attack.pool_size ({pool_size})")
            return sizes

    config: Config

    @property
    def sizes(self) -> Sequence[int]:
        """Return the values of N in ascending order, each once."""
        return sorted(set(self.config.sizes))
