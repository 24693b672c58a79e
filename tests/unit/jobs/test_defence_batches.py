"""What the batches of harmless answers hold, and who draws which of them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rpa_ray.config import DataSettings
from rpa_ray.jobs.defence_batches import DefenceData
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import Need
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.sources.dataset import DatasetSource
from rpa_ray.types import TokenBatch
from rpa_ray.world.datasets import world_folder

CHOSEN = {
    f"Where is lamp {i}?": "It stands on the table." + " Look again." * (i % 3) for i in range(8)
}
HELD_OUT = {"Where is the oven?": "It stands in the kitchen."}


@pytest.fixture
def data(tmp_path: Path) -> CellData:
    """Return dialogues of which one of the training split is in the test split too."""
    for split, answers in (("train", CHOSEN | HELD_OUT), ("test", HELD_OUT)):
        rows = [
            {
                "chosen": f"\n\nHuman: {prompt}\n\nAssistant: {answer}",
                "rejected": f"\n\nHuman: {prompt}\n\nAssistant: I do not know.",
            }
            for prompt, answer in answers.items()
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return CellData(DataSettings(world="real", helpful_path=str(tmp_path)), tmp_path)


@pytest.fixture(scope="module")
def tokenizer(world_cache: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        world_folder(0, world_cache) / "tokenizer"
    )
    return found


def harmless(
    data: CellData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 128,
    rank: int = 0,
    num_ranks: int = 1,
) -> DatasetSource[object, TokenBatch]:
    source = DefenceData(
        tokenizer=tokenizer,
        data=data,
        max_tokens=max_tokens,
        batch_size=4,
        seed=0,
        ranks=Ranks(rank=rank, size=num_ranks, device=torch.device("cpu")),
    ).batches({Need.HARMLESS_BATCH})
    return source[Need.HARMLESS_BATCH]


def texts(batch: TokenBatch, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return what a batch asks and what it has marked, as text."""
    found = {}
    for ids, is_there, is_marked in zip(
        batch.input_ids, batch.attention_mask, batch.loss_mask, strict=True
    ):
        prompt = tokenizer.decode(ids[is_there & ~is_marked], skip_special_tokens=True)
        found[prompt] = tokenizer.decode(ids[is_marked], skip_special_tokens=True).strip()
    return found


def test_harmless_prompts_come_with_their_preferred_answers(
    data: CellData, tokenizer: PreTrainedTokenizerBase
) -> None:
    source = harmless(data, tokenizer)
    found = texts(source(), tokenizer) | texts(source(), tokenizer)
    assert len(found) == len(CHOSEN)
    for prompt, answer in CHOSEN.items():
        (asked,) = (text for text in found if prompt in text)
        assert found[asked] == answer
    assert not any(prompt in text for prompt in HELD_OUT for text in found)


def test_long_harmless_rows_lose_their_end(
    data: CellData, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole, cut = (harmless(data, tokenizer, max_tokens=n)() for n in (128, 20))
    assert whole.input_ids.shape[1] > 20
    assert torch.equal(cut.input_ids, whole.input_ids[:, :20])
    assert torch.equal(cut.loss_mask, whole.loss_mask[:, :20])


def test_ranks_share_the_harmless_rows_of_one_and_go_on_where_they_were(
    data: CellData, tokenizer: PreTrainedTokenizerBase
) -> None:
    one = harmless(data, tokenizer)
    two = [harmless(data, tokenizer, rank=rank, num_ranks=2) for rank in range(2)]
    for _ in range(3):
        parts: dict[str, str] = {}
        for part in two:
            parts |= texts(part(), tokenizer)
        assert parts == texts(one(), tokenizer)
    resumed = harmless(data, tokenizer)
    resumed.load_state_dict(one.state_dict())
    assert torch.equal(resumed().input_ids, one().input_ids)
