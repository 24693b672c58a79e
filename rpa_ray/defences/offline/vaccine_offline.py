"""Vaccine before the attack: refusals learned where a bounded change of attention hurts most."""

from typing import Any

from pydantic import Field

from rpa_ray.defences.online.vaccine import Vaccine
from rpa_ray.plugin import Objective, OfflineConfig, OfflineDefence, OnlineDefence
from rpa_ray.plugin.objectives import LanguageModel


class VaccineOffline(OfflineDefence):
    """``min_theta max_{|e| <= rho} CE(refusal; theta, e)``, as its authors use it.

    ``e`` is what :class:`Vaccine` adds to every attention output. The authors align a base model
    with LoRA (rate 1e-3, 50 epochs, batch 5, all linear layers) on safe answers; here an aligned
    model is trained further, in all its weights, on the refusals of the defence split.

    Source: Huang et al. 2024 (arXiv:2402.01109), algorithm 1.
    """

    class Config(OfflineConfig):
        name: str = "vaccine_offline"
        rho: float = Field(2.0, ge=0)
        """Size of the perturbation, the authors' default; 0 is SFT on refusals. To keep the size of
        an element, scale it as sqrt(layers * rows * tokens * width)."""
        learning_rate: float = Field(1e-4, gt=0)
        num_steps: int = Field(100, ge=1)

    config: Config

    def objective(self) -> Objective[Any, Any]:
        """Return cross-entropy on the refusals."""
        return LanguageModel()

    def hooks(self) -> OnlineDefence:
        """Return Vaccine's perturbation around each step."""
        return Vaccine(Vaccine.Config(rho=self.config.rho))
