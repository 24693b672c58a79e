from rpa_ray.attacks.dpo import DPO
from rpa_ray.defences.online.dpo_beta import DPOBeta


def test_dpo_is_given_beta() -> None:
    asked = DPO.Config(beta=0.1, learning_rate=3e-4)
    allowed = DPOBeta(DPOBeta.Config(beta=1.0)).attack_config(asked)
    assert allowed == asked.model_copy(update={"beta": 1.0})
