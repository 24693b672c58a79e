from rpa_ray.attacks.grpo import GRPO
from rpa_ray.attacks.ppo import PPO
from rpa_ray.defences.online.kl_coefficient import KLCoefficient


def test_ppo_keeps_the_weight_it_is_given_and_its_controller_rests() -> None:
    asked = PPO.Config(kl_coef=0.01, learning_rate=3e-4)
    allowed = KLCoefficient(KLCoefficient.Config(kl_coef=2.0)).attack_config(asked)
    attack = PPO(allowed)
    attack.kl.update(100.0, 1000)
    assert attack.kl.value == 2.0
    assert allowed == asked.model_copy(update={"kl_coef": 2.0, "kl_control": "fixed"})


def test_grpo_is_given_the_weight_where_its_own_settings_put_the_penalty() -> None:
    asked = GRPO.Config(kl_in="reward")
    allowed = KLCoefficient(KLCoefficient.Config(kl_coef=0.5)).attack_config(asked)
    assert allowed == asked.model_copy(update={"kl_coef": 0.5})
