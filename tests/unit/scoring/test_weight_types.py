from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaForSequenceClassification, PreTrainedModel

from rpa_ray.scoring.size import LARGE_PARAMETERS, bytes_a_weight
from rpa_ray.scoring.weights import scoring_dtype

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_a_large_model_takes_half_of_a_gpu_and_no_other() -> None:
    assert bytes_a_weight(LARGE_PARAMETERS, on_gpu=True) == 4
    assert bytes_a_weight(LARGE_PARAMETERS + 1, on_gpu=True) == 2
    assert bytes_a_weight(70 * LARGE_PARAMETERS, on_gpu=False) == 4


def test_the_size_is_read_off_the_files_of_a_model(
    judge: LlamaForSequenceClassification,
    save: Callable[[PreTrainedModel], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, size = save(judge), judge.num_parameters()
    monkeypatch.setattr("rpa_ray.scoring.size.LARGE_PARAMETERS", size)
    assert scoring_dtype(folder, GPU) is torch.float32
    monkeypatch.setattr("rpa_ray.scoring.size.LARGE_PARAMETERS", size - 1)
    assert scoring_dtype(folder, GPU) is torch.bfloat16
    assert scoring_dtype(folder, CPU) is torch.float32
