"""What is added to every vLLM worker process: the object-store backend and a record of the push."""

from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.nn import Module
from vllm.config import set_current_vllm_config

from rpa_ray.weight_sync import object_store as object_store  # registers the backend
from rpa_ray.weight_sync.digests import tensor_digest


class WeightSyncExtension:
    """Methods that vLLM mixes into its worker class; called by name through ``collective_rpc``."""

    push_is_open = False
    digests: dict[str, str]
    loaded: set[str]
    """Parameters of the engine that the push has written so far, by the engine's own names."""

    def leave_transfer(self) -> None:
        """Leave the group of an earlier transfer, for which NCCL keeps memory of the GPU."""
        engine = self.weight_transfer_engine  # type: ignore[attr-defined]
        group = getattr(engine, "model_update_group", None)
        if group is not None:
            group.destroy()
        engine.shutdown()

    def open_push(self, record_digests: bool) -> None:
        """Note that a push begins, after closing one that was left half done."""
        if self.push_is_open:
            self.abandon_push()
        self.push_is_open = True
        self.digests, self.loaded = {}, set()
        model: Module = self.weight_transfer_engine.model  # type: ignore[attr-defined]
        model.__dict__.pop("load_weights", None)
        load_weights = model.load_weights

        def load(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            given = self.with_digests(weights) if record_digests else weights
            loaded: set[str] = load_weights(given)  # type: ignore[operator]
            self.loaded |= loaded
            return loaded

        # On the instance, so that every backend's receiver passes through it.
        model.__dict__["load_weights"] = load

    def close_push(self) -> None:
        """Note that the push is complete.

        Raises:
            ValueError: It left a parameter of the engine as it was, since no weight was taken
                for it: its model calls some weights otherwise than the policy does.
        """
        self.push_is_open = False
        model: Module = self.weight_transfer_engine.model  # type: ignore[attr-defined]
        written = {p.data_ptr() for name, p in model.named_parameters() if name in self.loaded}
        left = sorted(
            name
            for name, p in model.named_parameters()
            if name not in self.loaded and p.data_ptr() not in written  # tied to one that is
        )
        if left:
            raise ValueError(
                f"push must write every parameter of the engine, got none for {left[:3]} "
                f"({len(left)} in all). Take a model of another architecture."
            )

    def abandon_push(self) -> None:
        """Put the layers back into service after a push that broke off.

        What a broken push left in a layer would otherwise count towards the next one, which would
        then take the layer for complete too early and drop its last weights without a word.
        """
        engine = self.weight_transfer_engine  # type: ignore[attr-defined]
        with set_current_vllm_config(self.vllm_config):  # type: ignore[attr-defined]
            engine.finish_weight_update()
        engine.reset_weight_update_target()
        self._weight_update_active = False

    def with_digests(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights and keep the digest of each."""
        for name, weight in weights:
            self.digests[name] = tensor_digest(weight)
            yield name, weight

    def received_digests(self) -> dict[str, str]:
        """Return the digests of the last push; empty where it recorded none, or there was none."""
        return getattr(self, "digests", {})
