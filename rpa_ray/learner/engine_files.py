"""How what DeepSpeed keeps of an engine comes to disk and back: read as data, of which none is run.

Imported once :func:`rpa_ray.learner.deepspeed_import.import_deepspeed` has set DeepSpeed up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor, nn

RECORDS = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed's state holds beside tensors and plain values: numbers under a name."""


class EngineFiles(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed's classes are untyped
    """DeepSpeed's own files, but for pickles that could run code: those are refused."""

    write: Callable[[Any, str], None]
    """Takes the state of a file and its path; set before each saving."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        self.write(_without_enums(state_dict), path)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Return what :meth:`save` wrote.

        Raises:
            pickle.UnpicklingError: The file holds other objects than tensors and plain values.
        """
        with torch.serialization.safe_globals(RECORDS):
            return torch.load(path, map_location=map_location, weights_only=True)


def _without_enums(state: Any) -> Any:
    """Return a state with the numbers that are members of an enum as plain ones.

    Python 3.11.0 to 3.11.3 writes a member as a call of ``getattr``, which is never read.
    """
    if isinstance(state, dict):
        return type(state)((key, _without_enums(value)) for key, value in state.items())
    if type(state) in (list, tuple):
        return type(state)(map(_without_enums, state))
    return int(state) if isinstance(state, ZeroStageEnum) else state


def load_trained(src: Mapping[str, Tensor], dst: nn.Module) -> None:
    """Give a module the weights of a checkpoint, which has all but the frozen ones.

    Raises:
        ValueError: The module has others.
    """
    found = dst.load_state_dict(src, strict=False)
    frozen = {
        name
        for name, parameter in dst.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    wrong = sorted({*found.missing_keys} - frozen) + found.unexpected_keys
    if wrong:
        raise ValueError(
            f"a checkpoint must hold the weights that the module trains, got others: {wrong}. "
            "Delete it to start that training again."
        )
