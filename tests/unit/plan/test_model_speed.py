import json
import time
from pathlib import Path

import pytest
from fakes import tiny_llama

from rpa_ray.plan import model_speed
from rpa_ray.plan.model_speed import Speeds, machine_key, speeds

SHAPES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
KNOWN = Speeds(train_s=3.0, forward_s=1.0, decode_step_s=0.5, decode_token_s=0.1)


def ask(cache: Path, folder: Path | None = None, dtype: str = "float32") -> Speeds | None:
    return speeds(folder, SHAPES, dtype=dtype, num_threads=1, cache=cache)


def test_a_model_is_timed_once_for_its_type_threads_and_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask(tmp_path)
    assert first is not None
    assert first.train_s > 0 and first.forward_s > 0
    assert first.decode_step_s >= 0 and first.decode_token_s >= 0
    monkeypatch.setattr(model_speed, "_timed", lambda *_, **__: KNOWN)
    assert ask(tmp_path) == first
    assert ask(tmp_path, dtype="bfloat16") == KNOWN
    assert speeds(None, SHAPES, dtype="float32", num_threads=2, cache=tmp_path) == KNOWN
    wider = SHAPES | {"hidden_size": 32}
    assert speeds(None, wider, dtype="float32", num_threads=1, cache=tmp_path) == KNOWN


@pytest.mark.parametrize("text", ["", "{", "[]", '{"speeds": {"train_s": 1}}', '{"other": 1}'])
def test_a_torn_file_is_timed_again(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_speed, "_timed", lambda *_, **__: KNOWN)
    ask(tmp_path)
    (path,) = (tmp_path / "speed").iterdir()
    path.write_text(text)
    assert ask(tmp_path) == KNOWN
    assert json.loads(path.read_text())["speeds"]["train_s"] == 3.0


def test_shapes_come_from_a_folder_where_there_is_one(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    assert ask(tmp_path, folder=tmp_path / "model") is not None
    assert ask(tmp_path, folder=tmp_path / "nowhere") is None


def test_what_cannot_be_built_or_is_too_large_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "nobody knows it"}')
    assert ask(tmp_path, folder=tmp_path / "strange") is None
    monkeypatch.setattr(model_speed, "MAX_PARAMETERS", 100)
    assert ask(tmp_path) is None


def test_the_key_of_a_machine_holds_the_instructions_that_torch_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = machine_key("float32")
    assert machine_key("float32") == before != machine_key("bfloat16")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "ANOTHER")
    assert machine_key("float32") != before


@pytest.mark.parametrize(("load", "threads"), [(0.2, [1, 4]), (3.0, [1])])
def test_several_threads_are_timed_on_an_idle_machine_only(
    load: float, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    monkeypatch.setattr("torch.set_num_threads", used.append)
    model_speed._best_s(lambda: None, 4)
    assert used == threads


def test_one_thread_is_timed_by_what_it_computes_not_by_what_it_waits() -> None:
    assert model_speed._best_s(lambda: time.sleep(0.05), 1) < 0.04
