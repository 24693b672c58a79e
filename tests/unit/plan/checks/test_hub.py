import threading
from collections.abc import Iterator

import huggingface_hub
import pytest

from rpa_ray.config import ConfigError
from rpa_ray.plan.checks import models
from rpa_ray.plan.checks.models import require_hub_model


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Return what is set when the test is over."""
    ended = threading.Event()
    yield ended
    ended.set()


def answer_with(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
    *,
    after: threading.Event | None = None,
    limit_s: float = 30.0,
) -> None:
    """Have the Hub answer at once, or after an event."""

    def model_info(self: object, repo: str, *, timeout: float) -> None:
        if after is not None:
            after.wait()
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(models, "HUB_LIMIT_S", limit_s)


def test_a_model_that_the_hub_knows_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, None)
    require_hub_model("nobody/nothing", "model.path")


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        require_hub_model("nobody/nothing", "evaluation.judge.path")
    assert str(caught.value).startswith("evaluation.judge.path must be a folder with a model, or")
    return str(caught.value)


def test_a_model_that_the_hub_does_not_give_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, OSError("first\nno route to host"))
    assert "Hub: no route to host." in refusal()


def test_a_hub_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, ended: threading.Event
) -> None:
    answer_with(monkeypatch, None, after=ended, limit_s=0.05)
    assert "Hub: no answer within 0.05 s." in refusal()
