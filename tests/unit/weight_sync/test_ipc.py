from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from rpa_ray.actors.pools import RolloutPool
from rpa_ray.weight_sync import ipc
from rpa_ray.weight_sync.ipc import IpcSender

exported: list[Tensor] = []


@pytest.fixture
def sender(monkeypatch: pytest.MonkeyPatch) -> IpcSender:
    def reduce_tensor(tensor: Tensor) -> tuple[None, tuple[int]]:
        exported.append(tensor)
        return None, (tensor.nbytes,)

    def call_all(method: str, *args: Any) -> None:
        calls.append((method, *args))

    calls: list[Any] = []
    exported.clear()
    stream = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr(ipc, "reduce_tensor", reduce_tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-a")
    )
    return IpcSender(cast(RolloutPool, SimpleNamespace(call_all=call_all, calls=calls)))


def test_a_weight_may_be_larger_than_a_buffer_of_vllm(sender: IpcSender) -> None:
    large = torch.empty(2**30 + 1, dtype=torch.uint8, device="meta")  # 1 GiB is that buffer
    assert sender.pack([large]) == {"GPU-a": (2**30 + 1,)}


def test_engines_are_told_where_each_ranks_copy_lies(sender: IpcSender) -> None:
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([3.0])]
    own = sender.pack(weights)
    assert exported[0].view(torch.float32).tolist() == [1.0, 2.0, 3.0]
    sender.send(["a", "b"], weights, [own, {"GPU-b": (7,)}])
    told = {
        "names": ["a", "b"],
        "dtype_names": ["float32", "float32"],
        "shapes": [[1, 2], [1]],
        "ipc_handles": {"GPU-a": (12,), "GPU-b": (7,)},
        "tensor_sizes": [8, 4],
    }
    assert sender._pool.calls == [("update_weights", {"update_info": told})]  # type: ignore[attr-defined]
