"""One model under DeepSpeed: forward, backward, step, owned shards, gathering, checkpoints.

It, `deepspeed_import` and `engine_files` alone import DeepSpeed.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rpa_ray.learner.deepspeed_import import import_deepspeed
from rpa_ray.learner.engine_settings import EngineSettings as EngineSettings
from rpa_ray.learner.engine_settings import OptimizerSettings as OptimizerSettings
from rpa_ray.learner.engine_settings import deepspeed_config
from rpa_ray.plugin import MasterEdit, Shard
from rpa_ray.types import LowRank

_NUMBERS = ("num_updates", "num_scheduled_updates")


class Engine:
    """A module with its sharded optimizer."""

    def __init__(self, module: nn.Module, settings: EngineSettings) -> None:
        import_deepspeed()
        import deepspeed

        self.module = module
        self.settings = settings
        self.num_updates = 0
        self.num_scheduled_updates = 0
        """Those of the updates that the schedule of the learning rate counts."""
        trained = [p for p in module.parameters() if p.requires_grad]
        config = deepspeed_config(settings, num_trained=sum(p.numel() for p in trained))
        self._engine, *_ = deepspeed.initialize(
            model=module, model_parameters=trained, config=config
        )
        from rpa_ray.learner.engine_files import EngineFiles

        self._engine.checkpoint_engine = EngineFiles()
        # The user's own file may name another stage than the settings.
        self._zero_stage: int = self._engine.zero_optimization_stage()
        self._rank: int = self._engine.global_rank
        optimizer = self._engine.optimizer
        self._base_optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self._lent_gradients: list[tuple[nn.Parameter, Tensor]] = []
        self._expect_backward()

    @property
    def device(self) -> torch.device:
        """Return where the module lives."""
        device: torch.device = self._engine.device
        return device

    @property
    def zero_stage(self) -> int:
        """Return how far the state is cut over the ranks, the user's own JSON considered."""
        return self._zero_stage

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Run the module forward through DeepSpeed."""
        return self._engine(input_ids=input_ids, attention_mask=attention_mask)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of the coming update, unscaled.

        Any number of calls make one update. The sum has the type of the weights: bfloat16 ones are
        rounded at every call. ZeRO 0 and 1 reduce over ranks once an update, 2 and 3 at every call.
        """
        assert not self._gradients_complete, "backward came after the gradients were read"
        self._engine.backward(loss)

    def discard_gradients(self) -> None:
        """Forget every gradient since the last update, as if there had been no backward."""
        # zero_grad of DeepSpeed 0.19 clears the parameters' gradients alone. Under ZeRO 1 and 2 the
        # reduced parts lie in averaged_gradients and all_grad_tensors, and micro_step_id counts the
        # backwards since the update from -1 on; under ZeRO 3 they lie in the flat buffer.
        self._lent_gradients.clear()
        optimizer = self._engine.optimizer
        if self._zero_stage == 0:
            self._engine.zero_grad()
        else:
            optimizer.zero_grad()
        if self._zero_stage in (1, 2):
            optimizer.micro_step_id = -1
            optimizer.all_grad_tensors.clear()
            optimizer.averaged_gradients.clear()
        self._zero_partitions()
        self._expect_backward()

    def step(
        self, edit_masters: MasterEdit = lambda masters: None, *, is_scheduled: bool = True
    ) -> float:
        """Clip, step, clear gradients; return the gradient norm before clipping.

        An update that is not scheduled leaves the schedule of the learning rate where it is.
        ``edit_masters`` is called between the optimizer's step and the rounding of the masters to
        the weights that the module computes with, once for each group that steps by itself.
        """
        self._complete_gradients()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        norm = self._unsharded_grad_norm() if self._zero_stage == 0 else None
        self._take_gradients_back()
        hook = self._base_optimizer.register_step_post_hook(
            lambda optimizer, *_: edit_masters(self._stepped(optimizer))
        )
        try:
            self._engine.step()
        finally:
            hook.remove()
        self.num_updates += 1
        self.num_scheduled_updates += is_scheduled
        self._zero_partitions()
        self._expect_backward()
        return norm if norm is not None else float(self._engine.get_global_grad_norm())

    def learning_rate(self) -> float:
        """Return the rate of the next update."""
        return self.settings.optimizer.learning_rate_after(self.num_scheduled_updates)

    def shards(self) -> Iterator[Shard]:
        """Return master weights and gradients of the parts this rank owns (edit in place).

        Every rank must call it: it averages the gradients over ranks, where that is still to do.
        """
        self._complete_gradients()
        self._take_gradients_back()
        return self._owned_shards()

    @contextmanager
    def trial_weights(self) -> Iterator[Callable[[MasterEdit], None]]:
        """Return a context in which the weights may be moved, with what moves them.

        At its end masters and weights are what they were, bit for bit. After an error they are not:
        to round the masters takes all ranks. No gradient may wait; the optimizer is untouched.
        """
        kept = [(master, master.clone()) for _, master in self._masters()]

        def move(edit: MasterEdit) -> None:
            edit(self._masters())
            self._round_masters()

        yield move
        for master, value in kept:
            master.copy_(value)
        self._round_masters()

    def own_part(self, name: str, whole: Tensor) -> Tensor | None:
        """Return what this rank owns of whole values of a trained parameter, cut as its master.

        fp32; None where another rank owns all of it.
        """
        parameter = self.module.get_parameter(name)
        values = whole.detach().to(self.device, torch.float32)
        if self._zero_stage == 0:
            return values
        if self._zero_stage == 3:
            # The last rank's part ends in padding, which stays as the master has it.
            own = self._master(parameter).detach().clone()  # type: ignore[union-attr]
            cut = values.flatten()[self._rank * own.numel() : (self._rank + 1) * own.numel()]
            own.view(-1)[: cut.numel()] = cut
            return own
        mapping: Any = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        address = mapping.lp_fragment_address
        return values.flatten()[address.start : address.start + address.numel]

    def _owned_shards(self) -> Iterator[Shard]:
        for name, parameter in self.module.named_parameters():
            shard = self._shard(name, parameter) if parameter.requires_grad else None
            if shard is not None:
                yield shard

    def _expect_backward(self) -> None:
        """Tell DeepSpeed to accumulate: it learns which backward was the last when it has been."""
        self._gradients_complete = False
        self._engine.set_gradient_accumulation_boundary(False)

    def _complete_gradients(self) -> None:
        """Average over ranks what was accumulated, once an update."""
        if self._gradients_complete:
            return
        self._gradients_complete = True
        self._engine.set_gradient_accumulation_boundary(True)
        optimizer = self._engine.optimizer
        if self._zero_stage >= 2:
            optimizer.finalize_gradient_accumulation_boundary()
        elif getattr(optimizer, "overlap_comm", False):
            # DeepSpeed's usual reduction expects that this one ran beside the last backward.
            self._engine._flush_coalesced_reduction_zero12(optimizer)
        else:
            self._engine.allreduce_gradients()

    def _zero_partitions(self) -> None:
        """Forget what ZeRO-3 would step on again where the next loss does not reach."""
        if self._zero_stage != 3:
            return
        optimizer = self._engine.optimizer
        optimizer.grad_partitions_flat_buffer.zero_()
        if optimizer.offload_optimizer:
            for masters in optimizer.fp32_partitioned_groups_flat:
                masters.grad.zero_()

    def _unsharded_grad_norm(self) -> float:
        """Return what DeepSpeed reports only where it shards."""
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def _shard(self, name: str, parameter: nn.Parameter) -> Shard | None:
        master = self._master(parameter)
        if master is None:  # another rank owns all of it
            return None
        if self._zero_stage == 3:
            from deepspeed.utils import safe_get_local_grad

            # It comes to the module's device, also where it lies beside offloaded masters.
            gradient = safe_get_local_grad(parameter).to(master.device)
            self._lent_gradients.append((parameter, gradient))
            return Shard(name=name, master=master, gradient=gradient)
        if self._zero_stage == 0:
            assert parameter.grad is not None  # DeepSpeed fills in zeros
            return Shard(name=name, master=master, gradient=parameter.grad)
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        index: int = parameter._index_in_param_group  # type: ignore[attr-defined]
        gradient = mapping.get_lp_grad_fragment(index)
        return Shard(name=name, master=master, gradient=gradient.view(-1))

    def _stepped(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
        """Yield owned masters, by name, among what the optimizer has just stepped."""
        groups = optimizer.param_groups
        stepped = {p.untyped_storage().data_ptr() for group in groups for p in group["params"]}
        for name, master in self._masters():
            if master.untyped_storage().data_ptr() in stepped:
                yield name, master

    def _masters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the masters that this rank owns, by name."""
        for name, parameter in self.module.named_parameters():
            master = self._master(parameter) if parameter.requires_grad else None
            if master is not None:
                yield name, master.detach()

    def _round_masters(self) -> None:
        """Write the masters to the weights that the module computes with, as a step ends by."""
        optimizer = self._engine.optimizer
        if self._zero_stage in (1, 2):
            optimizer.update_lp_params()
        if self._zero_stage == 3:
            optimizer._partition_all_parameters()
            for group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(group)
            optimizer._post_step(set())

    def _master(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the fp32 weights of a parameter that this rank owns, None where it owns none."""
        if self._zero_stage == 3:
            from deepspeed.utils import safe_get_local_fp32_param

            own: Tensor = safe_get_local_fp32_param(parameter)
            return own
        if self._zero_stage == 0:
            return parameter.data
        mapping = getattr(parameter, "_hp_mapping", None)
        return None if mapping is None else mapping.hp_fragment.view(-1)

    def _take_gradients_back(self) -> None:
        """Write lent gradients to where ZeRO-3 steps on them: of bf16 ones it hands out copies."""
        if not self._lent_gradients:
            return
        from deepspeed.utils import safe_set_local_grad

        for parameter, gradient in self._lent_gradients:
            safe_set_local_grad(parameter, gradient)
        self._lent_gradients.clear()

    def gather(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Return a context in which the parameters are whole on this rank (collective)."""
        if self._zero_stage != 3:
            return nullcontext()
        from deepspeed.runtime.zero import GatheredParameters

        context: AbstractContextManager[None] = GatheredParameters(list(parameters))
        return context

    def weights(self) -> dict[str, Tensor]:
        """Return all of :meth:`each_weight`."""
        return dict(self.each_weight())

    def each_weight(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole CPU copy of what the model serves, one at a time, by their names.

        A collective that every rank has to exhaust; the first alone gets the weights. An adapter is
        in the weight that it stands beside.
        """
        adapters: dict[str, LowRank] = self.module.adapters()  # type: ignore[operator]
        for name, parameter in sorted(self.module.served_parameters()):  # type: ignore[operator]
            adapter = adapters.get(name)
            parts = [parameter, adapter.down, adapter.up] if adapter else [parameter]
            with self.gather(parts), torch.no_grad():
                if self._rank:
                    continue
                weight = adapter.merged(parameter) if adapter else parameter.detach()
                whole = weight.to("cpu", copy=True)
            yield name, whole

    def save(self, folder: Path, write: Callable[[Any, str], None] = torch.save) -> None:
        """Write trained weights, masters, optimizer state and numbers of updates, on every rank.

        Gradients are not saved: call it between updates. Frozen weights are where they came from.
        ``write`` takes the state of each file and its path.
        """
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        self._engine.checkpoint_engine.write = write
        self._engine.save_checkpoint(
            str(folder), tag="state", client_state=numbers, exclude_frozen_parameters=True
        )

    def load(self, folder: Path) -> None:
        """Restore what :meth:`save` wrote on as many ranks; every rank calls it.

        Raises:
            ValueError: the folder holds no saved engine, or one of other trained weights.
            pickle.UnpicklingError: a file of it holds more than data.
        """
        if not (folder / "state").is_dir():
            raise ValueError(f"folder must hold a saved engine, got {folder}. Name another.")
        from rpa_ray.learner.engine_files import load_trained

        _, client_state = self._engine.load_checkpoint(
            str(folder), tag="state", custom_load_fn=load_trained
        )
        self.discard_gradients()
        for name in _NUMBERS:
            setattr(self, name, int(client_state[name]))

    def destroy(self) -> None:
        """Free the engine's memory (whole under ZeRO 0-2)."""
        self._engine.destroy()
        del self._engine
        gc.collect()
