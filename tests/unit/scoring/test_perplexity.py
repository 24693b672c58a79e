import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedModel

from rpa_ray.scoring.perplexity import PerplexityScorer

SaveModel = Callable[[PreTrainedModel], Path]
NUM_WORDS = 15


def scorer(folder: Path, template: str = "{answer}", max_length: int = 64) -> PerplexityScorer:
    return PerplexityScorer(
        folder,
        template=template,
        max_length=max_length,
        batch_size=2,
        device=torch.device("cpu"),
    )


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(
    causal_lm: LlamaForCausalLM, save: SaveModel
) -> None:
    with torch.no_grad():
        causal_lm.lm_head.weight.zero_()
    (nll,) = scorer(save(causal_lm)).answer_nll([("a", "b c d")])
    assert nll.num_tokens == 3
    assert nll.nll_sum == pytest.approx(3 * math.log(NUM_WORDS), abs=1e-4)
    assert nll.perplexity == pytest.approx(NUM_WORDS, abs=1e-3)


def reference_nll(model: LlamaForCausalLM, context: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logprobs = model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
    return -sum(float(logprobs[len(context) - 1 + t, token]) for t, token in enumerate(answer))


def test_answer_is_scored_after_the_first_token_alone_or_after_the_prompt(
    causal_lm: LlamaForCausalLM, save: SaveModel
) -> None:
    folder = save(causal_lm)
    pairs = [("a b", "c d e"), ("a", "h")]
    plain = scorer(folder).answer_nll(pairs)
    assert [nll.nll_sum for nll in plain] == pytest.approx(
        [reference_nll(causal_lm, [1], [9, 10, 11]), reference_nll(causal_lm, [1], [14])], abs=1e-4
    )
    conditional = scorer(folder, "Q : {prompt} A : {answer}").answer_nll(pairs)
    assert [nll.nll_sum for nll in conditional] == pytest.approx(
        [
            reference_nll(causal_lm, [1, 4, 6, 7, 8, 5, 6], [9, 10, 11]),
            reference_nll(causal_lm, [1, 4, 6, 7, 5, 6], [14]),
        ],
        abs=1e-4,
    )
    assert [nll.num_tokens for nll in conditional] == [3, 1]


def test_an_empty_answer_has_no_perplexity(causal_lm: LlamaForCausalLM, save: SaveModel) -> None:
    judge = scorer(save(causal_lm))
    empty, full = judge.answer_nll([("a", ""), ("a", "b c")])
    assert (empty.nll_sum, empty.num_tokens) == (0.0, 0)
    assert math.isnan(empty.perplexity)
    assert full.num_tokens == 2
    assert math.isnan(judge.answer_nll([("a", "")])[0].perplexity)


def test_long_answers_lose_their_end(causal_lm: LlamaForCausalLM, save: SaveModel) -> None:
    first, second = scorer(save(causal_lm), max_length=3).answer_nll([("", "a b"), ("", "a b c d")])
    assert first.num_tokens == second.num_tokens == 2
    assert first.nll_sum == pytest.approx(second.nll_sum, abs=1e-5)


@pytest.mark.parametrize("template", ["Q : {prompt}", "{answer} </s>", "{answer}{answer}"])
def test_a_template_that_does_not_end_with_one_answer_is_refused(
    causal_lm: LlamaForCausalLM, save: SaveModel, template: str
) -> None:
    with pytest.raises(ValueError, match="template must"):
        scorer(save(causal_lm), template)


def test_a_model_without_all_of_its_weights_is_refused(
    causal_lm: LlamaForCausalLM, save: SaveModel
) -> None:
    folder = save(causal_lm)
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must hold every weight of its model, got none for mod"):
        scorer(folder)


def test_rows_are_read_singly_where_their_logits_are_large(
    causal_lm: LlamaForCausalLM, save: SaveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [("a", "b c d"), ("a", "b"), ("a", "c d")]
    folder = save(causal_lm)
    whole = scorer(folder).score(texts)
    monkeypatch.setattr("rpa_ray.scoring.perplexity._MAX_LOGIT_BYTES", 1)
    careful = scorer(folder)
    sizes: list[int] = []
    careful._model.register_forward_pre_hook(
        lambda model, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    assert careful.score(texts) == pytest.approx(whole)
    assert sizes == [1, 1, 1]
