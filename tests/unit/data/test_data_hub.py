import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest

from rpa_ray.data import hub
from rpa_ray.data.errors import DataError
from rpa_ray.data.hub import pinned
from rpa_ray.data.load import Split, load_rows
from rpa_ray.data.schema import Row
from rpa_ray.run_folder.files import say_once

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub._commit.cache_clear()
    yield
    hub._commit.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Make a Hub that knows every data set at one commit; return what it was asked."""
    questions: list[tuple[str, str | None]] = []

    def dataset_info(
        self: object, repo: str, *, revision: str | None, timeout: float
    ) -> SimpleNamespace:
        questions.append((repo, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    return questions


@pytest.fixture
def serve(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str | None]]
) -> Callable[..., list[str | None]]:
    """Return a function that makes the Hub hold these splits; it gives the revisions read."""
    revisions: list[str | None] = []

    def serve_splits(**splits: list[Row]) -> list[str | None]:
        tables = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}

        def load_dataset(
            repo: str, data_dir: str | None, revision: str | None
        ) -> datasets.DatasetDict:
            revisions.append(revision)
            return datasets.DatasetDict(tables)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return revisions

    return serve_splits


def answers(*prompts: str) -> list[Row]:
    return [{"prompt": p, "response": "no", "is_safe": True, "note": 1} for p in prompts]


def comparisons(num: int) -> list[Row]:
    return [
        {
            "prompt": f"ask {i}",
            "response_0": "x",
            "response_1": "y",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 1,
            "safer_response_id": 0,
            "response_0_severity_level": 0,
            "prompt_source": "somewhere",
        }
        for i in range(num)
    ]


def load(name: str, split: Split = "train", subset: str | None = None) -> list[str]:
    rows = load_rows(name, "owner/name", split=split, path_key="data.path", subset=subset)
    return [str(row["prompt"]) for row in rows]


def test_an_id_without_revision_is_pinned_to_the_commit_that_the_hub_names(
    asked: list[tuple[str, str | None]],
) -> None:
    assert pinned("owner/name", "data.path") == f"owner/name@{COMMIT}"
    assert asked == [("owner/name", None)]


def test_a_branch_or_tag_is_pinned_to_its_commit(asked: list[tuple[str, str | None]]) -> None:
    assert pinned("owner/name@v1", "data.path") == f"owner/name@{COMMIT}"
    assert asked == [("owner/name", "v1")]


def test_the_hub_is_asked_once_and_every_split_is_read_at_that_commit(
    asked: list[tuple[str, str | None]], serve: Callable[..., list[str | None]]
) -> None:
    revisions = serve(train=comparisons(3), test=comparisons(2))
    load("safe_rlhf")
    load("safe_rlhf", "test")
    assert pinned("owner/name", "data.safety_path") == f"owner/name@{COMMIT}"
    assert len(asked) == 1
    assert revisions == [COMMIT, COMMIT]


def test_offline_an_id_stays_as_it_is_and_nobody_is_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[str, str | None]]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pinned("owner/name", "data.path") == "owner/name"
    assert pinned("owner/name@v1", "data.path") == "owner/name@v1"
    assert asked == []


def test_a_local_path_is_not_pinned(tmp_path: Path, asked: list[tuple[str, str | None]]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({}))
    assert pinned(str(tmp_path), "data.path") == str(tmp_path)
    assert asked == []


@pytest.mark.parametrize(
    ("split", "subset", "prompt"),
    [
        ("train", "330k", "330k train"),
        ("train", "30k", "30k train"),
        ("test", "330k", "30k test"),
        ("test", "30k", "30k test"),
    ],
)
def test_a_subset_names_the_training_rows_and_the_evaluation_stays(
    serve: Callable[..., object], split: Split, subset: str, prompt: str
) -> None:
    names = ("330k_train", "330k_test", "30k_train", "30k_test")
    serve(**{name: answers(name.replace("_", " ")) for name in names})
    assert load("beavertails", split, subset) == [prompt]


def test_a_copy_of_beavertails_may_call_its_splits_train_and_test(
    serve: Callable[..., object],
) -> None:
    serve(train=answers("a"), test=answers("b"))
    assert (load("beavertails", "train", "330k"), load("beavertails", "test")) == (["a"], ["b"])
    with pytest.raises(DataError, match=r"with the split '30k_train', got .* \['test', 'train'\]"):
        load("beavertails", "train", "30k")


def test_columns_of_newer_releases_are_left_out(serve: Callable[..., object]) -> None:
    serve(train=comparisons(2), test=comparisons(1))
    (row, _) = load_rows("safe_rlhf", "owner/name", split="train", path_key="k")
    assert sorted(row) == [
        *("better_response_id", "is_response_0_safe", "is_response_1_safe", "prompt"),
        *("response_0", "response_1", "safer_response_id"),
    ]


def test_a_release_without_a_test_split_is_divided_by_prompt(serve: Callable[..., object]) -> None:
    serve(train=comparisons(300))
    train, test = load("safe_rlhf"), load("safe_rlhf", "test")
    assert sorted(train + test) == sorted(f"ask {i}" for i in range(300))
    # A tenth of 300 prompts, plus or minus four standard deviations.
    assert len(test) == pytest.approx(30, abs=21)


def test_the_splits_of_a_release_that_are_left_are_told_once(
    serve: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    say_once.cache_clear()
    serve(train=comparisons(30), validation=comparisons(1))
    load("safe_rlhf")
    load("safe_rlhf", "test")
    (message,) = caplog.messages
    assert message.endswith("are held out, and the splits ['validation'] are not read.")


def test_one_broken_row_in_a_hundred_is_left_out_and_counted(
    serve: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    rows = comparisons(200)
    rows[3] = rows[3] | {"response_0": ""}
    rows[7] = rows[7] | {"safer_response_id": 1}
    serve(train=rows, test=comparisons(1))
    with caplog.at_level(logging.WARNING):
        assert len(load("safe_rlhf")) == 198
    assert f"left out 2 of 200 rows of owner/name@{COMMIT} (train): data.path must" in caplog.text
    rows[9] = rows[9] | {"prompt": " "}
    serve(train=rows, test=comparisons(1))
    with pytest.raises(DataError, match=r"an empty text in row 10 \(1 of 200 rows\) of owner/name"):
        load("safe_rlhf")


def test_a_mapping_to_a_column_that_the_hub_does_not_have_names_those_it_has(
    serve: Callable[..., object],
) -> None:
    serve(train=comparisons(1), test=comparisons(1))
    with pytest.raises(
        DataError, match=r"^data\.columns\.prompt must name a column of owner/name@"
    ):
        load_rows(
            "safe_rlhf", "owner/name", split="train", path_key="k", columns={"prompt": "qestion"}
        )


class NotFound(BaseHTTPRequestHandler):
    """Answers every question with 404, as the Hub does for a data set that is not there."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def set_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes a port of this machine the Hub."""

    def set_port(port: int) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")

    return set_port


def error_of(source: str) -> str:
    with pytest.raises(DataError) as error:
        load_rows("beavertails", source, split="train", path_key="data.path")
    return str(error.value)


def test_a_hub_that_never_answers_is_given_up_within_five_seconds(
    set_hub: Callable[[int], None],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        set_hub(server.getsockname()[1])
        start = time.monotonic()
        message = error_of("owner/name@v1")
    assert time.monotonic() - start < 5
    assert "be a data set within reach, got owner/name (" in message
    assert "Name a local folder or file" in message


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(set_hub: Callable[[int], None]) -> None:
    with socket.socket() as held:  # bound, so that nobody else gets the port, and not listening
        held.bind(("127.0.0.1", 0))
        set_hub(held.getsockname()[1])
        assert "be a data set within reach" in error_of("owner/name")


def test_a_data_set_that_the_hub_does_not_know_is_refused(set_hub: Callable[[int], None]) -> None:
    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        set_hub(server.server_port)
        message = error_of("owner/name")
        server.shutdown()
    assert "be a data set that the Hub gives out, got owner/name (" in message
    assert "Check id, revision and access rights." in message
