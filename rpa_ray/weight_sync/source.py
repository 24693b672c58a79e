"""The policy's weights as vLLM's weight transfer wants them, whole or sharded over the ranks.

Under ZeRO-3 a rank holds only its part of each parameter. The learner hands in how to gather; here
one layer group is gathered at a time and copied before it is let go.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource, layerwise_groups

from rpa_ray.types import LowRank
from rpa_ray.weight_sync.digests import tensor_digest

Gather = Callable[[Sequence[Parameter]], AbstractContextManager[object]]
"""Makes the given parameters whole inside the context; a collective over the ranks."""
WeightFilter = Callable[[str, Tensor], Tensor]
"""Maps (checkpoint name, copy of the weight) to the weight that is served instead."""


class ShardedSource(WeightSource):  # type: ignore[misc]  # vLLM's bases are untyped
    """A stream of (checkpoint name, whole weight) over the policy, the same on every rank.

    Every pass is a sequence of gathers that all ranks must run alike, and leave alike.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Parameter]],
        *,
        dtype: torch.dtype,
        gather: Gather = lambda parameters: nullcontext(),
        weight_filter: WeightFilter | None = None,
        adapters: Mapping[str, LowRank] | None = None,
    ) -> None:
        """Take the policy's named parameters; ``dtype`` is that of the weights that are sent.

        ``adapters``, by checkpoint name, are sent inside the weights that they stand beside.
        """
        self._adapters = adapters or {}
        self._dtype = dtype
        self._gather = gather
        self._weight_filter = weight_filter
        self._parameters = dict(parameters)
        # In the order of the groups, which vLLM's receivers read as the order of the stream.
        self._groups = layerwise_groups(list(self._parameters))
        self._records_digests = False
        self.digests: dict[str, str] = {}
        """SHA-256 of each weight sent in this pass, where ``begin_pass`` asked for it."""

    def metadata(self) -> list[ParamMeta]:
        """Return name, type and whole shape of every weight, in the order of the stream."""
        return [
            ParamMeta(name, self._dtype, whole_shape(self._parameters[name]))
            for group in self._groups
            for name in group
        ]

    def num_bytes(self) -> int:
        """Return the bytes of one pass."""
        numels = (torch.Size(meta.shape).numel() for meta in self.metadata())
        return sum(numels) * self._dtype.itemsize

    def begin_pass(self, *, record_digests: bool) -> None:
        """Say what is recorded of the next pass."""
        self._records_digests = record_digests
        self.digests = {}

    def iter_groups(self) -> Iterator[tuple[list[str], list[Tensor]]]:
        """Yield the names and weights of one layer group after the other."""
        for group in self._groups:
            weights = self._read(group)
            if self._records_digests:
                self.digests |= {n: tensor_digest(w) for n, w in zip(group, weights, strict=True)}
            yield group, weights

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and weight of one parameter after the other."""
        for names, weights in self.iter_groups():
            yield from zip(names, weights, strict=True)

    def _read(self, group: list[str]) -> list[Tensor]:
        with torch.no_grad(), self._gather(self._gathered(group)):
            weights = [
                self._adapters[name].merged(self._parameters[name])
                if name in self._adapters
                else self._parameters[name].detach().clone()
                for name in group
            ]
        if self._weight_filter is not None:
            weights = [self._weight_filter(n, w) for n, w in zip(group, weights, strict=True)]
        return [weight.to(self._dtype).contiguous() for weight in weights]

    def _gathered(self, group: list[str]) -> list[Parameter]:
        """Return all that a group's weights are made of."""
        adapters = [self._adapters[name] for name in group if name in self._adapters]
        return [self._parameters[name] for name in group] + [
            part for adapter in adapters for part in (adapter.down, adapter.up)
        ]


def whole_shape(parameter: Parameter) -> tuple[int, ...]:
    """Return the shape of a parameter as a whole, also where this rank holds a part of it."""
    # DeepSpeed leaves an empty tensor in place of a partitioned parameter and its shape here.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
