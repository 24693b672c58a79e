"""How what DeepSpeed keeps of an engine comes to disk and back: read as data, of which none is run.

Imported once :func:`rpa_ray.learner.engine.import_deepspeed` has set DeepSpeed up.
"""

from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

RECORDS = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
"""What DeepSpeed's state holds beside tensors and plain values: numbers under a name."""


class EngineFiles(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed's classes are untyped
    """DeepSpeed's own files, but for pickles that could run code: those are refused."""

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        torch.save(state_dict, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Return what :meth:`save` wrote.

        Raises:
            pickle.UnpicklingError: The file holds other objects than tensors and plain values.
        """
        with torch.serialization.safe_globals(RECORDS):
            return torch.load(path, map_location=map_location, weights_only=True)
