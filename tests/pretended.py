"""An accelerator that exists by name alone, to find tensors that are on the wrong device.

How it works. Torch's device for backends of others (PrivateUse1) is called ``pretended`` and set up
from Python. A :class:`Pretended` tensor says that it lies there and holds its values as an ordinary
CPU tensor. Every operation below autograd comes to :func:`_run`, which computes on those values and
says that the results lie there too; where it meets a tensor of the CPU it raises
:class:`MixedDevices`. As on CUDA, a CPU tensor without dimensions may take part in an operation
element by element, if it is not what is written to, and copies between devices are free.
Indices on the CPU, which CUDA copies without a word, are refused as well.
Generators belong to a device too, and collectives of two ranks that hold the same rows come back at
once, on the device they were given.

``deepspeed.initialize`` gives a :class:`StandIn`, so that our ``Engine`` runs unchanged at ZeRO
stage 0. A file of ``torch.save`` notes which values lay on the device, and ``map_location`` is
asked about them as about those of a GPU.

What it cannot see: what DeepSpeed does with devices, and with it the branches of ``Engine`` for
ZeRO 1 to 3 (in ``discard_gradients``, ``step``, ``own_part``, ``_complete_gradients``, ``_shard``,
``_master``, ``_take_gradients_back`` and ``gather``) and all of ``engine_files``; weights in
bfloat16 beside fp32 masters; collectives by NCCL; lines that ask ``torch.cuda.is_available``;
kernels that CUDA lacks or computes differently; the order of streams, and memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
CPU = torch.device("cpu")
_MOVES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)
fetched: list[str] = []
"""Every time that values of the device were asked for, since it was cleared last."""
_TorchGenerator = torch.Generator
_STORAGE_TO = torch.UntypedStorage.to


class MixedDevices(RuntimeError):
    """An operation met tensors or a generator of two devices."""


class Pretended(Tensor):
    """A tensor on the device, with values on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> "Pretended":
        tensor: Pretended = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=device(),
        )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self, **settings: Any) -> str:
        return f"pretended {self.values!r}"

    def tolist(self) -> Any:
        fetched.append("tolist")
        return self.values.tolist()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """Have modules keep their parameters, tied ones too, when they move here."""
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *unused: Any) -> "Pretended":
        return Pretended(parts["values"])

    def __reduce_ex__(self, protocol: Any) -> Any:
        _STORED_HERE[self.untyped_storage().data_ptr()] = self.values.untyped_storage()
        return _loaded, (self.values,)


def device() -> torch.device:
    """Return the device, which there is from the first call on until the process ends."""
    _register()
    return torch.device(NAME, 0)


class _Backend(_DummyBackendModule):
    """The device as ``torch.accelerator`` sees it: not there, for whoever looks for one to use."""

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0


@cache
def _register() -> torch.library.Library:
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    # torch.tensor(..., device=...) comes past every mode.
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return library


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **placed: Any) -> Pretended:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Pretended, non_blocking: bool = False) -> Tensor:
    target.values.copy_(source)
    return target


class _Mode(TorchDispatchMode):
    """Brings what makes tensors, and what moves them, to :func:`_run`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_here(place: Any) -> bool:
    return place is not None and torch.device(place).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the values, and wrap what comes out as lying where it would lie."""
    target = kwargs.get("device")
    given: list[Any] = []
    inner_args = _mapped(args, lambda leaf: _value_of(leaf, given))
    inner_kwargs = {
        key: _mapped(leaf, lambda v: _value_of(v, given)) for key, leaf in kwargs.items()
    }
    outer = {id(tensor.values): tensor for tensor in given if isinstance(tensor, Pretended)}
    result_is_here = _is_here(target) if target is not None else bool(outer)
    if func.overloadpacket is torch.ops.aten.copy_:
        result_is_here = isinstance(args[0], Pretended)
    if func.overloadpacket not in _MOVES:
        _refuse_mixed(func, args, given, result_is_here=result_is_here)
    if outer and (not result_is_here or func.overloadpacket is torch.ops.aten._local_scalar_dense):
        fetched.append(str(func))
    if _is_here(target):
        inner_kwargs["device"] = CPU
    found = func(*inner_args, **inner_kwargs)
    if outer and torch.Tag.inplace_view in func.tags:
        with no_dispatch():  # the shape that the tensor itself tells
            func(*args, **kwargs)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        # What works in place returns the tensor that it was given.
        return outer[id(value)] if id(value) in outer else Pretended(value)

    return _mapped(found, wrapped) if result_is_here else found


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value of an operator with its leaves changed: operators nest lists alone."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(part, change) for part in value])
    return change(value)


def _value_of(leaf: Any, given: list[Any]) -> Any:
    """Return what is computed with, and note tensors and generators."""
    if type(leaf) is Pretended:
        given.append(leaf)
        return leaf.values
    if isinstance(leaf, Tensor | _TorchGenerator):
        given.append(leaf)
    return leaf


def _refuse_mixed(func: Any, args: Any, given: Sequence[Any], *, result_is_here: bool) -> None:
    """Refuse what CUDA would: tensors of two devices, and a generator of another one."""
    has_pretended = any(isinstance(leaf, Pretended) for leaf in given)
    for leaf in given:
        if isinstance(leaf, _TorchGenerator):
            if (leaf._cdata in _Generator.made_here) != result_is_here:
                raise MixedDevices(f"{func}: a generator of another device than its numbers")
        elif has_pretended and not isinstance(leaf, Pretended):
            is_written = func._schema.is_mutable and leaf is args[0]
            if leaf.dim() > 0 or is_written or torch.Tag.pointwise not in func.tags:
                raise MixedDevices(f"{func}: one of the CPU of shape {[*leaf.shape]} meets {NAME}")


class _Generator(torch.Generator):
    """A generator that is known by its address where it was made for the device.

    It draws the numbers of the CPU, wherever it is.
    """

    made_here: ClassVar[dict[int, "_Generator"]] = {}

    def __new__(cls, place: Any = CPU) -> "_Generator":
        generator = super().__new__(cls, CPU)
        if _is_here(place):
            cls.made_here[generator._cdata] = generator
        return generator


_STORED_HERE: dict[int, torch.UntypedStorage] = {}
"""Values of tensors on the device that were saved or loaded, by address, which each keeps."""


def _location_of(storage: torch.UntypedStorage) -> str | None:
    """Return where a storage is that is saved, as torch asks of every kind of device."""
    return str(device()) if storage.data_ptr() in _STORED_HERE else None


def _storage_to(storage: torch.UntypedStorage, *, device: Any, **settings: Any) -> Any:
    """Move a storage that is loaded; its values stay where they can be computed with."""
    if not _is_here(device):
        return _STORAGE_TO(storage, device=device, **settings)
    _STORED_HERE[storage.data_ptr()] = storage
    return storage


def _loaded(values: Tensor) -> Tensor:
    """Return a tensor of a file on the device that ``map_location`` has chosen."""
    is_here = values.untyped_storage().data_ptr() in _STORED_HERE
    return Pretended(values) if is_here else values


class StandIn:
    """What ``deepspeed.initialize`` returns, at ZeRO stage 0 on one rank: as much as we call."""

    global_rank = 0

    def __init__(self, module: nn.Module, config: dict[str, Any], place: torch.device) -> None:
        self.module = module.to(place)
        self.device = place
        self.optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad],
            **{k: config["optimizer"]["params"][k] for k in ("lr", "betas", "eps", "weight_decay")},
            foreach=False,
        )
        self._max_norm: float = config["gradient_clipping"]

    def __call__(self, **inputs: Tensor) -> Any:
        return self.module(**inputs)

    def zero_optimization_stage(self) -> int:
        return 0

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Do nothing: gradients add up until they are discarded."""

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def allreduce_gradients(self) -> None:
        """Give what the loss did not reach a gradient of zeros, as DeepSpeed does."""
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def zero_grad(self) -> None:
        self.module.zero_grad()

    def step(self) -> None:
        if self._max_norm > 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm, foreach=False)
        self.optimizer.step()
        self.zero_grad()

    def save_checkpoint(
        self, folder: str, *, tag: str, client_state: dict[str, int], **settings: Any
    ) -> None:
        Path(folder, tag).mkdir(parents=True)
        state = {
            "module": {n: p.detach() for n, p in self.module.named_parameters()},
            "optimizer": self.optimizer.state_dict(),
            "client": client_state,
        }
        torch.save(state, Path(folder, tag, "state.pt"))

    def load_checkpoint(self, folder: str, *, tag: str, **settings: Any) -> tuple[str, Any]:
        path = Path(folder, tag, "state.pt")
        state = torch.load(path, map_location=self._placed, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.module.named_parameters():
                parameter.copy_(state["module"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        return str(path), state["client"]

    def _placed(self, storage: torch.UntypedStorage, saved_on: str) -> Any:
        return storage if saved_on == "cpu" else storage.to(device=self.device)


@contextmanager
def stand_in(place: torch.device) -> Iterator[None]:
    """Have engines built in here live on a device, without DeepSpeed."""
    from rpa_ray.learner.deepspeed_import import import_deepspeed

    import_deepspeed()

    def initialize(*, model: nn.Module, config: dict[str, Any], **settings: Any) -> tuple[StandIn]:
        return (StandIn(model, config, place),)

    with patch("deepspeed.initialize", initialize):
        yield


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Let the device be there: yield it."""
    place = device()
    torch.serialization.register_package(0, _location_of, lambda storage, location: None)
    with (
        # Else the first backward of a process settles which devices have a thread.
        torch.autograd.set_multithreading_enabled(False),
        patch("torch.Generator", _Generator),
        patch("torch.UntypedStorage.to", _storage_to),
        torch.serialization.safe_globals([_loaded]),
        _Mode(),
    ):
        try:
            yield place
        finally:
            _Generator.made_here.clear()
            _STORED_HERE.clear()
            torch.serialization._package_registry[:] = [
                entry
                for entry in torch.serialization._package_registry
                if entry[1] is not _location_of
            ]


@contextmanager
def two_ranks() -> Iterator[None]:
    """Have collectives answer as if another rank held what this one holds."""

    def all_reduce(tensor: Tensor) -> None:
        tensor.mul_(2)

    def all_gather(parts: list[Tensor], own: Tensor) -> None:
        for part in parts:
            part.copy_(own)

    def all_gather_object(boxes: list[Any], own: Any) -> None:
        boxes[:] = [own] * len(boxes)

    with (
        patch("torch.distributed.all_reduce", all_reduce),
        patch("torch.distributed.all_gather", all_gather),
        patch("torch.distributed.all_gather_object", all_gather_object),
        patch("torch.distributed.broadcast_object_list", lambda box, src: None),
        patch("torch.distributed.barrier", lambda: None),
    ):
        yield
