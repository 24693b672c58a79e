import math

import torch
from fakes import context_of, forward_of, tiny_llama, tiny_policy, token_batch

from rpa_ray.defences.unsafe_terms import RepNoiseLoss, RepNoiseSettings, answer_loss
from rpa_ray.types import LossTerm, PairBatch

PAIRS = PairBatch(
    chosen=token_batch([[1, 4, 14, 15, 2], [1, 5, 2]], num_prompt_tokens=2, width=6),
    rejected=token_batch([[1, 4, 10, 11, 12, 2], [1, 5, 11, 2]], num_prompt_tokens=2, width=6),
)


def repnoise(**settings: object) -> RepNoiseLoss:
    return RepNoiseLoss(RepNoiseSettings.model_validate({"name": "repnoise"} | settings))


def term_of(term: RepNoiseLoss) -> LossTerm:
    module = tiny_policy()
    term.attach(module.policy)
    return term.of(forward_of(module), PAIRS, context_of())


def test_positions_that_differ_count_in_the_mode_of_the_authors_code() -> None:
    term = repnoise(mask="positionwise_diff")
    safe, _ = term.counted(PAIRS)
    # row 0: 14 15 2 0 against 10 11 12 2; row 1: 2 0 against 11 2
    assert safe.loss_mask.tolist() == [
        [False, False, True, True, True, True],
        [False, False, True, True, False, False],
    ]
    # the padding of id 0 is a position of the noise, and no token to predict
    assert term.predicted(safe).loss_mask.tolist() == [
        [False, False, True, True, True, False],
        [False, False, True, False, False, False],
    ]
    assert math.isfinite(float(term_of(term).loss.detach()))


def test_the_loss_is_that_of_its_parts_at_the_weights_that_run() -> None:
    module, term = tiny_policy(), repnoise(alpha=2.0, beta=3.0)
    term.attach(module.policy)
    whole = term.of(forward_of(module), PAIRS, context_of()).loss
    retained = answer_loss(forward_of(module), PAIRS.chosen, context_of())
    unsafe = term.unsafe_term(forward_of(module), PAIRS.rejected, context_of()).loss
    torch.testing.assert_close(whole, retained + unsafe)
    module.policy.load_state_dict(tiny_llama(seed=5).state_dict())
    assert not torch.equal(term.of(forward_of(module), PAIRS, context_of()).loss, whole)


def test_the_batch_of_the_mmd_is_that_of_all_ranks() -> None:
    module, term = tiny_policy(), repnoise(alpha=0.0)
    term.attach(module.policy)
    two = term.unsafe_term(forward_of(module), PAIRS.rejected, context_of(num_ranks=2))
    assert two.metrics["defence/mmd_batch"] == 4.0
