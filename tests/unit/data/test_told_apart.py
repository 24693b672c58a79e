import pytest

from rpa_ray.data.errors import DataError
from rpa_ray.data.pairs import answered
from rpa_ray.data.rows import Answered, SafePair
from rpa_ray.data.told_apart import require_told_apart, sides


def pair(prompt: str, safe: str, unsafe: str) -> SafePair:
    return answered("preferences", prompt=prompt, safe=safe, unsafe=unsafe, category=None)


def letters(row: Answered) -> list[int]:
    """Read a letter as a token, in lower case and without white space around the answer."""
    return [ord(letter) for letter in f"{row.prompt}{row.answer.strip()}".lower()]


def refusal(pairs: list[SafePair], max_tokens: int, key: str) -> str | None:
    read = [
        (letters(safe)[:max_tokens], letters(unsafe)[:max_tokens])
        for safe, unsafe in map(sides, pairs)
    ]
    try:
        require_told_apart(
            pairs, read, letters, where=lambda pairs: "", max_tokens=max_tokens, key=key
        )
    except DataError as error:
        return str(error)
    return None


PAIRS = [pair("ab", "xyz", "xyw"), pair("abcd", "same here", "same"), pair("e", "no", "yes")]


def test_pairs_that_are_one_row_once_cut_are_refused_with_the_length_that_tells_them_apart() -> (
    None
):
    # The first differs at its fifth token; of the second one side ends after eight.
    assert refusal(PAIRS, 9, "k.max_tokens") is None
    assert refusal(PAIRS, 8, "k.max_tokens") == (
        "k.max_tokens must tell the two answers of every pair apart, got 1 of 3 pairs with the "
        "same 8 tokens or fewer for both, first that of 'abcd'. Raise it to 9."
    )
    assert "got 2 of 3 pairs with the same 4 tokens or fewer" in str(
        refusal(PAIRS, 4, "k.max_tokens")
    )
    assert refusal(PAIRS[:1], 4, "data.path") == (
        "data.path must hold pairs whose answers differ in what the model reads of them, got 1 of "
        "1 pairs with the same 4 tokens or fewer for both, first that of 'ab'. Shorten their "
        "prompts, or take a model that reads 5 tokens."
    )


@pytest.mark.parametrize(("safe", "unsafe"), [("Yes", "yes"), (" yes", "yes\n")])
def test_answers_that_a_tokenizer_makes_the_same_are_refused_at_any_length(
    safe: str, unsafe: str
) -> None:
    message = refusal([pair("ab", safe, unsafe), *PAIRS], 4, "k.max_tokens")
    assert message is not None
    assert message.endswith(
        "Raise it to 9. Remove 1 whose answers have the same tokens at any length."
    )
