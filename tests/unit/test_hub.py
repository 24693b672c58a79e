import time

import huggingface_hub
import pytest

from rpa_ray import hub
from rpa_ray.config import ConfigError
from rpa_ray.hub import require_hub_model


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "HUB_LIMIT_S", 0.05)


def answer_with(monkeypatch: pytest.MonkeyPatch, error: Exception | None, wait_s: float) -> None:
    def model_info(self: object, repo: str, *, timeout: float) -> None:
        time.sleep(wait_s)
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_a_model_that_the_hub_knows_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, None, 0.0)
    require_hub_model("nobody/nothing", "model.path")


@pytest.mark.parametrize(
    ("error", "wait_s", "reason"),
    [
        (OSError("first\nno route to host"), 0.0, "Hub: no route to host."),
        (None, 0.5, "Hub: no answer within 0.05 s."),
    ],
)
def test_a_model_that_the_hub_does_not_give_out_is_refused_in_time(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, wait_s: float, reason: str
) -> None:
    answer_with(monkeypatch, error, wait_s)
    with pytest.raises(ConfigError) as caught:
        require_hub_model("nobody/nothing", "evaluation.judge.path")
    assert str(caught.value).startswith("evaluation.judge.path must be a folder with a model, or")
    assert reason in str(caught.value)
