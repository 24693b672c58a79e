import pytest

from rpa_ray.defences.online.low_lr import LowLearningRate


def test_the_attack_learns_at_a_tenth_of_its_rate() -> None:
    control = LowLearningRate(LowLearningRate.Config())
    assert control.learning_rate(5e-4) == pytest.approx(5e-5)


def test_the_factor_lies_between_0_and_1() -> None:
    for factor in (0.0, 1.0):
        with pytest.raises(ValueError, match="factor"):
            LowLearningRate.Config(factor=factor)
