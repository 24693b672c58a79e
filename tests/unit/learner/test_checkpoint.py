import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import tiny_llama
from transformers import LlamaForCausalLM

from rpa_ray.learner.model_folder import save_model, weights_sha256

WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)}


class Tokenizer:
    """Saves one file; or fails in the middle, as a full disk would make it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def save_pretrained(self, folder: Path) -> None:
        if self.fails:
            raise OSError("no space left on device")
        (folder / "tokenizer.json").write_text("{}")


def save(folder: Path, *, factor: float = 1.0, tokenizer: Any = None) -> dict[str, torch.Tensor]:
    model = tiny_llama()
    weights = {name: factor * p.detach() for name, p in model.named_parameters()}
    save_model(
        folder,
        model=model,
        weights=weights,
        tokenizer=tokenizer or Tokenizer(),
        record={"recipe": "chat"},
    )
    return weights


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    return weights_sha256(sorted(weights.items()))


def test_one_bit_changes_the_fingerprint() -> None:
    bits = WEIGHTS["a"].clone().view(torch.int32)
    bits[1] ^= 1
    assert fingerprint(WEIGHTS | {"a": bits.view(torch.float32)}) != fingerprint(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([[1.0, 2.0]]), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].view(torch.int32), "b": WEIGHTS["b"]},
        {"c": WEIGHTS["a"], "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"]},
    ],
    ids=["shape", "type", "name", "fewer"],
)
def test_the_same_bytes_under_another_heading_are_another_model(other: Any) -> None:
    assert fingerprint(other) != fingerprint(WEIGHTS)


def test_the_fingerprint_reads_values_not_memory_layout() -> None:
    matrix = torch.arange(6.0).view(2, 3)
    strided = matrix.t().contiguous().t()
    assert not strided.is_contiguous()
    assert fingerprint({"a": strided}) == fingerprint({"a": matrix})


def test_a_saved_folder_loads_with_the_weights_it_was_given(tmp_path: Path) -> None:
    weights = save(tmp_path / "model", factor=2.0)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert fingerprint(dict(loaded.named_parameters())) == fingerprint(weights)
    assert json.loads((tmp_path / "model/made_from.json").read_text()) == {"recipe": "chat"}
    assert (tmp_path / "model/model.safetensors").exists()
    assert (tmp_path / "model/tokenizer.json").exists()


def test_the_folder_is_alone(tmp_path: Path) -> None:
    save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_could_not_be_finished_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "model", tokenizer=Tokenizer(fails=True))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_model_that_was_there(tmp_path: Path) -> None:
    weights = save(tmp_path / "model")
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "model", factor=3.0, tokenizer=Tokenizer(fails=True))
    kept = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert fingerprint(dict(kept.named_parameters())) == fingerprint(weights)


def test_a_second_save_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path / "model")
    weights = save(tmp_path / "model", factor=3.0)
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert fingerprint(dict(loaded.named_parameters())) == fingerprint(weights)
