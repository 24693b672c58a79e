import pickle
from typing import Literal

import pytest
from pydantic import Field, ValidationError, field_validator

from rpa_ray.config import ConfigError, PluginConfig, Settings
from rpa_ray.config.errors import MAX_SHOWN_CHARS, short
from rpa_ray.plan.explain import explain


class Inner(Settings):
    alpha: float = Field(1.0, ge=0)


class Other(Settings):
    beta: int = 0


class Outer(PluginConfig):
    name: str = "outer"
    size: int
    inner: Inner | None = None
    either: Inner | Other = Inner()
    many: tuple[Inner, ...] = Field((), strict=False)
    mode: Literal["a", "b"] = "a"

    @field_validator("size")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("must be even")
        return value


def message(**tree: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"size": 2, **tree})
    return str(explain(caught.value, Outer, "cells[0].attack."))


def test_an_error_that_is_pickled_is_the_same_error() -> None:
    error = ConfigError("data.rho", "be at most 1", 3, "Lower it.")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ConfigError)
    assert str(copy) == str(error) == "data.rho must be at most 1, got 3. Lower it."
    assert (copy.key, copy.rule, copy.value, copy.remedy) == error.args


def test_a_long_value_is_cut() -> None:
    assert len(str(ConfigError("a", "be short", "x" * 10_000, "Cut it."))) < 300


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1.5, True, "it's", 'say "no"', "a\nb", [], {}, (), [1], (1,), (1, "b")),
        *({"a": [1, {"b": None}]}, list(range(500)), {str(i): i for i in range(500)}, {1, 2}),
    ],
)
def test_a_value_is_shown_as_python_writes_it(value: object) -> None:
    written = repr(value)
    cut = f"{written[:MAX_SHOWN_CHARS]}..." if len(written) > MAX_SHOWN_CHARS else written
    assert short(value) == cut


def test_a_value_of_many_aliases_is_cut_before_it_is_written() -> None:
    value: list[object] = ["x"]
    for _ in range(30):
        value = [value] * 10
    value.append(value)
    assert len(short(value)) == MAX_SHOWN_CHARS + len("...")
    assert short({"a": 16**5000}) == "{'a': a large int}"


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {"siz": 3},
            "cells[0].attack.siz must be a known key, got 'siz'. Did you mean 'size'? "
            "Known: ['either', 'inner', 'many', 'mode', 'name', 'size'].",
        ),
        (
            {"inner": {"alfa": 1}},
            "cells[0].attack.inner.alfa must be a known key, got 'alfa'. "
            "Did you mean 'alpha'? Known: ['alpha'].",
        ),
        (
            {"inner": {"alpha": -1.0}},
            "cells[0].attack.inner.alpha must be greater than or equal to 0, got -1.0. "
            "Correct the value; the default is 1.0.",
        ),
        (
            {"many": [{}, {"alpha": "1"}]},
            "cells[0].attack.many[1].alpha must be a valid number, got '1'. "
            "Correct the value; the default is 1.0.",
        ),
        (
            {"inner": 3},
            "cells[0].attack.inner must be a mapping of keys, got 3. Write its keys below.",
        ),
        (
            {"size": 3},
            "cells[0].attack.size must be even, got 3. Correct the value.",
        ),
        (
            {"mode": "c"},
            "cells[0].attack.mode must be 'a' or 'b', got 'c'. "
            "Correct the value; the default is 'a'.",
        ),
        (
            {"inner": {"alpha": float("inf")}},
            "cells[0].attack.inner.alpha must be a finite number, got inf. "
            "Correct the value; the default is 1.0.",
        ),
    ],
)
def test_the_message_names_key_rule_value_and_remedy(
    tree: dict[str, object], expected: str
) -> None:
    assert message(**tree) == expected


def test_the_name_of_a_unions_member_is_no_part_of_the_key() -> None:
    found = message(either={"alfa": 1})
    assert found.startswith("cells[0].attack.either.alfa must be a known key, got 'alfa'.")
    assert found.endswith("Known: ['alpha', 'beta'].")


def test_a_misspelt_key_is_named_rather_than_the_one_that_is_missing_for_it() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"sizze": 2})
    assert "Did you mean 'size'?" in str(explain(caught.value, Outer, ""))


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({})
    assert str(explain(caught.value, Outer, "")) == "size must be given, got None. Add it."


def test_a_key_without_a_name_is_shown_as_one() -> None:
    error = ConfigError("", "be a known key", "", "Choose one of those.")
    assert str(error) == "'' must be a known key, got ''. Choose one of those."
