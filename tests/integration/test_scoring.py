"""Scoring workers keep several models warm, split the pairs and heal after a restart."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from rpa_ray.actors.errors import WorkerError
from rpa_ray.actors.pools import ScorerPool, create_scorer_pool
from rpa_ray.actors.scoring import ScorerSpec, ScoringWorker

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh"]
PAIRS = [("a", "b c"), ("b", "c d e f"), ("c", "h"), ("d", ""), ("e", "a a a")]

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScorerSpec]:
    """Return a judge and a perplexity model over single-letter words."""
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        num_labels=2,
    )
    torch.manual_seed(0)
    words = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    folders = {}
    for name, kind in (("judge", LlamaForSequenceClassification), ("fluency", LlamaForCausalLM)):
        folders[name] = tmp_path_factory.mktemp(name)
        kind(config).save_pretrained(folders[name])
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
        ).save_pretrained(folders[name])
    return {
        "judge": ScorerSpec(
            path=str(folders["judge"]), kind="harm_probability", template="{prompt} {answer}"
        ),
        "fluency": ScorerSpec(path=str(folders["fluency"]), kind="perplexity", template="{answer}"),
    }


@pytest.fixture(scope="module")
def pool(ray_cluster: None, specs: dict[str, ScorerSpec]) -> Iterator[ScorerPool]:
    pool = create_scorer_pool(2, num_cpus=0, time_limit_s=600.0)
    for name, spec in specs.items():
        pool.load(name, spec)
    yield pool
    pool.shut_down()


def test_two_workers_score_as_one_process_does(
    pool: ScorerPool, specs: dict[str, ScorerSpec]
) -> None:
    alone = ScoringWorker().score("judge", specs["judge"], PAIRS)
    pending = pool.score_async("judge", PAIRS), pool.score_async("judge", PAIRS[::-1])
    assert pending[0].result() == pytest.approx(alone, abs=1e-5)
    assert pending[1].result() == pytest.approx(alone[::-1], abs=1e-5)
    assert alone[3] == 0.0


def test_answer_nll_comes_with_the_number_of_tokens(pool: ScorerPool) -> None:
    assert [nll.num_tokens for nll in pool.answer_nll("fluency", PAIRS)] == [2, 4, 1, 0, 3]


def test_answer_nll_of_a_judge_is_refused(pool: ScorerPool) -> None:
    with pytest.raises(ValueError, match="scorer 'judge' must be of kind 'perplexity'"):
        pool.answer_nll("judge", PAIRS)


def test_an_unknown_scorer_is_refused_with_the_known_ones(pool: ScorerPool) -> None:
    with pytest.raises(ValueError, match=r"one of \['fluency', 'judge'\], got 'reward'"):
        pool.score("reward", PAIRS)


def test_a_folder_without_a_model_is_refused(pool: ScorerPool, tmp_path: Path) -> None:
    spec = ScorerSpec(path=str(tmp_path), kind="reward", template="{prompt} {answer}")
    with pytest.raises(ValueError, match=r"scoring worker [01]: path must be a folder"):
        pool.load("reward", spec)


def test_a_killed_worker_is_named_and_loads_its_models_again_by_itself(pool: ScorerPool) -> None:
    scores = pool.score("judge", PAIRS)
    victim = pool.call_all("status")[1]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="scoring worker 1 must answer score"):
        pool.score("judge", PAIRS)
    pool.wait_until_up()
    assert pool.score("judge", PAIRS) == scores


def test_a_worker_that_hangs_is_replaced(pool: ScorerPool) -> None:
    scores = pool.score("judge", PAIRS)
    impatient = ScorerPool(pool._members, time_limit_s=3.0)
    victim = pool.call_all("status")[0]
    os.kill(victim.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match=r"scoring worker 0 must answer status, got no answer"):
        impatient.wait_until_up()
    pool.wait_until_up()
    assert pool.call_all("status")[0].pid != victim.pid
    assert pool.score("judge", PAIRS) == scores


def test_an_unloaded_scorer_is_gone(pool: ScorerPool) -> None:
    pool.unload("fluency")
    with pytest.raises(ValueError, match="got 'fluency'"):
        pool.score("fluency", PAIRS)
