from collections.abc import Iterable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rpa_ray.weight_sync.digests import tensor_digest
from rpa_ray.weight_sync.receiving import WeightSyncExtension


class Served(nn.Module):
    """Takes weights by their names and passes over those it does not know, as some engines do."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Linear(2, 2, bias=False)
        self.embedding = nn.Embedding(3, 2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = nn.Parameter(self.embedding.weight.data)  # tied by its memory

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        own = dict(self.named_parameters())
        return {name for name, _ in weights if name in own}


def worker() -> WeightSyncExtension:
    found = WeightSyncExtension()
    found.weight_transfer_engine = SimpleNamespace(model=Served())  # type: ignore[attr-defined]
    return found


def push(to: WeightSyncExtension, names: list[str], *, record_digests: bool = False) -> None:
    to.open_push(record_digests)
    for name in names:  # group by group
        model = to.weight_transfer_engine.model  # type: ignore[attr-defined]
        model.load_weights([(name, torch.ones(2))])
    to.close_push()


def test_a_push_writes_every_parameter_tied_ones_by_the_other_name() -> None:
    engine = worker()
    for _ in range(2):
        push(engine, ["experts.weight", "embedding.weight"], record_digests=True)
    assert engine.received_digests().keys() == {"experts.weight", "embedding.weight"}
    assert engine.received_digests()["experts.weight"] == tensor_digest(torch.ones(2))


def test_a_weight_that_the_engine_passes_over_is_an_error_in_every_push() -> None:
    engine = worker()
    with pytest.raises(ValueError, match=r"every parameter of the engine, got none for \['experts"):
        push(engine, ["experts.fused", "embedding.weight"])
    push(engine, ["experts.weight", "embedding.weight"])
    with pytest.raises(ValueError, match=r"got none for \['experts\.weight'\] \(1 in all\)"):
        push(engine, ["embedding.weight"])
