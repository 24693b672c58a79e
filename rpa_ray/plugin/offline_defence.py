"""What an offline defence is: a training of the model before it is released and attacked."""

from typing import Any, ClassVar

from rpa_ray.config.plugins import OfflineConfig
from rpa_ray.plugin.attack import Objective
from rpa_ray.plugin.online_defence import OnlineDefence
from rpa_ray.plugin.step import Need


class OfflineDefence:
    """Hardens weights: an objective on the defence split's refusals, with hooks around its steps.

    What it makes is a model like any other, kept under a key that holds the config and the model it
    began with. The attack that follows is untouched and knows nothing of it; what is measured
    before that attack is the hardened model, and distances are from it.
    """

    requires: ClassVar[frozenset[Need]] = frozenset()
    """Batches that objective or hooks draw from their context, of ``config.batch_size`` rows:
    ``SAFE_BATCH``, ``CONTRAST_BATCH``, ``HARMLESS_BATCH``. ``context.frozen`` is the model that the
    defence began with."""

    class Config(OfflineConfig):
        name: str

    def __init__(self, config: OfflineConfig) -> None:
        self.config = config

    @property
    def passes(self) -> float:
        """Return the time of a step with these settings by that of SFT on as many refusals."""
        return self.hooks().passes

    def objective(self) -> Objective[Any, Any]:
        """Return what is trained on; its batches are refusals of the defence split [rows, seq]."""
        raise NotImplementedError

    def hooks(self) -> OnlineDefence:
        """Return what acts around each step of the hardening; nothing, as a rule."""
        return OnlineDefence(OnlineDefence.Config())
