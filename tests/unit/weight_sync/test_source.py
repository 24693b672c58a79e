import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import Parameter

from rpa_ray.types import LowRank
from rpa_ray.weight_sync.source import ShardedSource, whole_shape


def parameters(*names: str) -> list[tuple[str, Parameter]]:
    return [(name, Parameter(torch.full((2, 3), float(i)))) for i, name in enumerate(names)]


LAYERED = ("embed.weight", "layers.0.a", "layers.1.a", "layers.0.b", "norm.weight")


def test_stream_goes_layer_by_layer_and_agrees_with_its_metadata() -> None:
    source = ShardedSource(parameters(*LAYERED), dtype=torch.bfloat16)
    groups = [names for names, _ in source.iter_groups()]
    assert groups == [
        ["embed.weight"],
        ["layers.0.a", "layers.0.b"],
        ["layers.1.a"],
        ["norm.weight"],
    ]
    streamed = [(name, weight.dtype, tuple(weight.shape)) for name, weight in source]
    assert streamed == [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    # 5 weights of 6 numbers of 2 bytes
    assert source.num_bytes() == 60


def test_weights_are_copied_before_the_gather_is_let_go() -> None:
    named = parameters(*LAYERED)

    @contextmanager
    def gather(gathered: Sequence[Parameter]) -> Iterator[None]:
        yield
        for parameter in gathered:
            parameter.data.fill_(torch.nan)

    weights = dict(ShardedSource(named, dtype=torch.float32, gather=gather))
    assert [float(weights[name][0, 0]) for name in LAYERED] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_shape_of_a_partitioned_parameter_is_that_of_the_whole() -> None:
    parameter = Parameter(torch.empty(0))
    parameter.ds_shape = torch.Size([4, 2])
    assert whole_shape(parameter) == (4, 2)


def test_weight_filter_sees_full_precision_and_leaves_the_policy_alone() -> None:
    named = [("w", Parameter(torch.tensor([1.0, 2.0**-12])))]
    source = ShardedSource(
        named, dtype=torch.bfloat16, weight_filter=lambda name, weight: weight.mul_(2).sub_(2)
    )
    ((_, served),) = source
    # 2 * 2^-12 - 2 rounds to -2 in bf16; 2 * 1 - 2 = 0
    assert served.tolist() == [0.0, -2.0]
    assert named[0][1].tolist() == [1.0, 2.0**-12]


def test_digests_of_a_pass_are_those_of_the_bytes_it_sent() -> None:
    source = ShardedSource([("w", Parameter(torch.ones(2)))], dtype=torch.bfloat16)
    source.begin_pass(record_digests=True)
    list(source)
    # 1.0 in bf16 is 0x3f80, little-endian
    assert source.digests == {"w": hashlib.sha256(bytes.fromhex("803f803f")).hexdigest()}
    source.begin_pass(record_digests=False)
    list(source)
    assert source.digests == {}


def test_tied_weights_are_sent_once() -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
    module["head"].weight = module["embed"].weight
    source = ShardedSource(module.named_parameters(), dtype=torch.float32)
    assert [meta.name for meta in source.metadata()] == ["embed.weight"]


def adapter() -> LowRank:
    """Return one of rank 1 that adds 2 * (1, 10) x (1, 2, 3)."""
    return LowRank(
        down=Parameter(torch.tensor([[1.0, 2.0, 3.0]])),
        up=Parameter(torch.tensor([[1.0], [10.0]])),
        scale=2.0,
    )


ADDED = torch.tensor([[2.0, 4.0, 6.0], [20.0, 40.0, 60.0]])


def test_adapters_are_sent_inside_the_weights_they_stand_beside() -> None:
    named = parameters(*LAYERED)
    plain = ShardedSource(named, dtype=torch.float32)
    source = ShardedSource(named, dtype=torch.float32, adapters={"layers.1.a": adapter()})
    assert source.metadata() == plain.metadata()
    weights = dict(source)
    assert torch.equal(weights["layers.1.a"], 2.0 + ADDED)
    others = [name for name in LAYERED if name != "layers.1.a"]
    assert all(torch.equal(weights[name], dict(plain)[name]) for name in others)
    # and the policy itself goes on with the two apart
    assert torch.equal(dict(named)["layers.1.a"], torch.full((2, 3), 2.0))


def test_an_adapter_is_whole_when_its_weight_is_read_and_in_every_gather() -> None:
    beside = adapter()
    whole = {id(beside.down): beside.down.data.clone(), id(beside.up): beside.up.data.clone()}
    beside.down.data.fill_(torch.nan)
    beside.up.data.fill_(torch.nan)
    sizes: list[int] = []

    @contextmanager
    def gather(group: Sequence[Parameter]) -> Iterator[None]:
        sizes.append(len(group))
        for parameter in group:
            if id(parameter) in whole:
                parameter.data.copy_(whole[id(parameter)])
        yield
        for parameter in group:
            parameter.data.fill_(torch.nan)

    source = ShardedSource(
        parameters(*LAYERED), dtype=torch.float32, gather=gather, adapters={"layers.1.a": beside}
    )
    assert torch.equal(dict(source)["layers.1.a"], 2.0 + ADDED)
    assert sizes == [1, 2, 3, 1]


def test_the_weight_filter_sees_the_merged_weight() -> None:
    seen = []
    source = ShardedSource(
        parameters("w"),
        dtype=torch.float32,
        adapters={"w": adapter()},
        weight_filter=lambda name, weight: seen.append(weight.clone()) or weight,
    )
    list(source)
    torch.testing.assert_close(seen, [ADDED])


def test_an_adapter_is_merged_in_fp32_before_the_sum_is_rounded() -> None:
    # up @ down = 1 + 2^-8, which bf16 alone would round to 1, and -1 + that to 0
    low = LowRank(
        down=Parameter(torch.tensor([[1.0], [2.0**-8]], dtype=torch.bfloat16)),
        up=Parameter(torch.ones(1, 2, dtype=torch.bfloat16)),
        scale=1.0,
    )
    merged = low.merged(-torch.ones(1, 1, dtype=torch.bfloat16)).detach()
    assert merged.dtype == torch.bfloat16
    assert float(merged) == 2.0**-8
