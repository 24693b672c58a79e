"""What an offline defence is: a training of the model before it is released and attacked."""

from typing import Any, ClassVar

from rpa_ray.config.plugins import LoraSettings, OfflineConfig
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
        """Return the time of a step's passes by that of one over its batch; 1 up to a tenth more.

        An update of the weights is not in it.
        """
        return self.hooks().passes

    @property
    def num_moves(self) -> int:
        """Return how often a step moves the weights, what it takes back among it."""
        return 1

    @property
    def num_shard_copies(self) -> int:
        """Return the fp32 copies that a step keeps: :attr:`OnlineDefence.num_shard_copies`."""
        return self.hooks().num_shard_copies

    @property
    def needs(self) -> frozenset[Need]:
        """Return what the defence asks for with these settings; ``requires`` at least."""
        return self.requires

    @property
    def lora(self) -> LoraSettings | None:
        """Return the adapters that are trained, and merged at the end; None trains every weight."""
        return None

    def objective(self) -> Objective[Any, Any]:
        """Return what is trained on; its batches are refusals of the defence split [rows, seq]."""
        raise NotImplementedError

    def hooks(self) -> OnlineDefence:
        """Return what acts around each step of the hardening; nothing, as a rule."""
        return OnlineDefence(OnlineDefence.Config())
