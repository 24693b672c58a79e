import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from served import checkpoint_digests

from rpa_ray.weight_sync.digests import tensor_digest


def test_digest_is_that_of_the_bytes_in_row_major_order() -> None:
    tensor = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    assert tensor_digest(tensor) == hashlib.sha256(bytes([1, 2, 3, 4])).hexdigest()
    assert tensor_digest(tensor.T) == hashlib.sha256(bytes([1, 3, 2, 4])).hexdigest()


def test_digest_of_a_scalar_and_of_one_changed_bit() -> None:
    assert tensor_digest(torch.tensor(0.0)) == hashlib.sha256(bytes(4)).hexdigest()
    assert tensor_digest(torch.tensor(-0.0)) != tensor_digest(torch.tensor(0.0))


def test_checkpoint_digests_read_every_file_in_the_served_type(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    assert checkpoint_digests(tmp_path, torch.bfloat16) == {
        "a": tensor_digest(torch.ones(2, dtype=torch.bfloat16)),
        "b": hashlib.sha256(bytes(6)).hexdigest(),
    }


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="folder must hold a safetensors checkpoint"):
        checkpoint_digests(tmp_path, torch.float32)
