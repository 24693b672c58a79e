from fakes import token_batch

from rpa_ray.sources.phased import PhasedSource
from rpa_ray.types import Metrics


class Named:
    """A source whose batches say which they are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[int] = []

    def next_batch(self, step: int) -> tuple[str, Metrics]:
        self.asked.append(step)
        return f"{self.name} {step}", {self.name: float(step)}


def test_each_phase_counts_its_own_batches_from_0() -> None:
    source = PhasedSource(Named("targets"), 2, Named("rollouts"))
    batches = [source.next_batch(step) for step in range(5)]
    assert batches == [
        ("targets 0", {"targets": 0.0}),
        ("targets 1", {"targets": 1.0}),
        ("rollouts 0", {"rollouts": 0.0}),
        ("rollouts 1", {"rollouts": 1.0}),
        ("rollouts 2", {"rollouts": 2.0}),
    ]


def test_a_resumed_training_enters_the_phase_it_was_in() -> None:
    targets, rollouts = Named("targets"), Named("rollouts")
    source = PhasedSource(targets, 2, rollouts)
    assert source.next_batch(3)[0] == "rollouts 1"
    assert (targets.asked, rollouts.asked) == ([], [1])


def test_batches_of_the_two_phases_may_be_of_different_kinds() -> None:
    class Tokens:
        def next_batch(self, step: int) -> tuple[object, Metrics]:
            return token_batch([[1, 2]]), {}

    source = PhasedSource(Tokens(), 1, Named("rollouts"))
    assert [type(source.next_batch(step)[0]).__name__ for step in (0, 1)] == ["TokenBatch", "str"]
