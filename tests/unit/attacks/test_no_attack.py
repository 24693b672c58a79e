from rpa_ray.attacks import ATTACKS
from rpa_ray.attacks.none import NoAttack


def test_no_attack_consumes_nothing_and_asks_for_nothing() -> None:
    attack = ATTACKS["none"](NoAttack.Config())
    assert [attack.num_batches(n) for n in (1, 8, 10_000)] == [0, 0, 0]
    assert attack.requires == frozenset()
