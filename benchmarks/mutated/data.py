"""Mutants of data files: values, encodings, columns, sizes, torn files, and what is no file."""

import csv
import datetime
import decimal
import gzip
import json
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Random = random.Random
NUM_ROWS = 400
ASK, NO = "What is river {} made of?", "I'm sorry, but I can't help with that, number {}."


def _beavertails(i: int) -> dict[str, Any]:
    answer = {"response": f"Take {i} cups of water.", "is_safe": False, "category": {"wet": True}}
    if i % 2:
        answer = {"response": NO.format(i), "is_safe": True, "category": {"wet": False}}
    return {"prompt": ASK.format(i // 2), **answer}


def _safe_rlhf(i: int) -> dict[str, Any]:
    return {
        "prompt": ASK.format(i),
        "response_0": NO.format(i),
        "response_1": f"Take {i} cups of water.",
        "is_response_0_safe": True,
        "is_response_1_safe": False,
        "better_response_id": 1,
        "safer_response_id": 0,
    }


def _preferences(i: int) -> dict[str, Any]:
    texts = {"safe": NO.format(i), "unsafe": f"Take {i} cups of water.", "category": "wet"}
    return {"prompt": ASK.format(i), **texts}


def _tldr(i: int) -> dict[str, Any]:
    texts = {"chosen": f"River {i}.", "rejected": f"No river {i}.", "label": f"{i} rivers."}
    return {"prompt": f"Once I saw river {i}.\n\nTL;DR:", **texts}


def _helpful(i: int) -> dict[str, Any]:
    ask = f"\n\nHuman: {ASK.format(i)}\n\nAssistant:"
    return {"chosen": f"{ask} Of water and {i} stones.", "rejected": f"{ask} Of {i}."}


ROWS_OF: dict[str, Callable[[int], dict[str, Any]]] = {
    "beavertails": _beavertails,
    "safe_rlhf": _safe_rlhf,
    "preferences": _preferences,
    "tldr": _tldr,
    "helpful": _helpful,
}
"""A row by its number, by the name of the format."""
AGAIN = "again:"
"""Before the name of a column that is written a second time."""
VALUES: tuple[Any, ...] = (
    *(None, 3, -1, 2.5, True, 10**18, 10**400, float("nan"), float("inf")),
    *("", " \t", "\0", "a\0b", "\u202eab", "\u200b", "\ufeff", "\ud800", "a\ud83d", "\x1b[31m"),
    *("x" * 2**20, "yes\n" * 2**12, "NaN", "null", "true", "\r", "{prompt}", "</s>", "\x85"),
    *([], [None], ["a"], [[]], {}, {"a": {"b": 1}}, {"": None}, {"a": [1]}, [{}]),
    [{"role": "user", "content": "Why?"}],
    [{"role": ["user"], "content": "Why?"}],
    [{"role": "user", "content": None}],
    [{"role": "assistant", "content": [{"type": "text", "text": "So."}]}],
    [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}],
    *(b"a\xff", datetime.date(2026, 1, 1), datetime.timedelta(1), decimal.Decimal("1.5")),
)


# ---------------------------------------------------------------------------- files


def _write(place: Path, rows: Rows) -> None:
    """Write rows as what the name of the place says; bytes and dates as texts where it must."""
    name = place.name
    names = {column for row in rows for column in row}
    # `datasets` itself cannot save columns of these names.
    unfit = names & {"", "\0", "\ud800"} or any(AGAIN in column for column in names)
    if name.startswith("hub") or (name.startswith("saved") and unfit):
        (place / "data").mkdir(parents=True)
        for split, part in (("train", rows[40:]), ("test", rows[:40])):
            pq.write_table(_arrow(part), place / "data" / f"{split}-00000-of-00001.parquet")
    elif name.startswith("saved"):
        parts = {"train": rows[40:] or rows, "test": rows[:40]}
        tables = {split: datasets.Dataset(_arrow(part)) for split, part in parts.items()}
        datasets.DatasetDict(tables).save_to_disk(str(place))
    elif name.startswith("splits"):
        place.mkdir()
        _write(place / "train.jsonl", rows[40:])
        _write(place / "test.jsonl", rows[:40])
    elif name.endswith(".parquet"):
        pq.write_table(_arrow(rows), place)
    elif name.endswith(".gz"):
        _write(place.with_suffix(""), rows)
        whole = place.with_suffix("")
        place.write_bytes(gzip.compress(whole.read_bytes()))
        whole.unlink()
    elif name.endswith(".csv"):
        flat = dict.fromkeys(k for row in rows for k, v in row.items() if not isinstance(v, dict))
        with place.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
            writer = csv.DictWriter(file, list(flat), extrasaction="ignore")
            writer.writerow({column: column.removeprefix(AGAIN) for column in flat})
            writer.writerows(rows)
    else:
        text = "".join(f"{_json(row)}\n" for row in rows)
        if name.endswith(".json"):
            text = _json({"data": rows} if name.startswith("object") else rows)
        place.write_bytes(text.encode("utf-8", "surrogatepass"))


PLACES = (
    *("lines.jsonl", "array.json", "object.json", "table.csv", "table.parquet"),
    *("packed.jsonl.gz", "packed.csv.gz", "hub", "saved", "splits"),
)


def _json(value: Any) -> str:
    return json.dumps(value, default=str).replace(f'"{AGAIN}', '"')


def _arrow(rows: Rows) -> pa.Table:
    """Return a table; a column that has no one type has texts, their bytes unchecked."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            texts = [v if isinstance(v, str) else _json(v) for v in values]
            packed = pa.array([text.encode("utf-8", "surrogatepass") for text in texts])
            arrays.append(packed.view(pa.string()))
    texts = [name.removeprefix(AGAIN).encode("utf-8", "replace").decode() for name in names]
    return pa.table(arrays, texts)


def _files(place: Path) -> list[Path]:
    return sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else [place]


# ---------------------------------------------------------------------------- mutations


def _value(rows: Rows, random_: Random) -> None:
    """Put a hostile value into a column: of one row, of some, or of all."""
    name, value = random_.choice(list(rows[0])), random_.choice(VALUES)
    for row in random_.choice([rows[:1], rows[-1:], rows[::7], rows]):
        row[name] = value


def _column(rows: Rows, random_: Random) -> None:
    """Take a column away, name it otherwise, or add some."""
    name = random_.choice(list(rows[0]))
    part = random_.choice([rows, rows, rows[:1], rows[::3]])
    other = random_.choice([name.upper(), f" {name}", f"{name}s", "", "\0", "\ud800", "n" * 9999])
    change = random_.choice(["lost", "renamed", "renamed", "added", "many", "swapped", "doubled"])
    for row in part:
        if change in ("lost", "renamed"):
            value = row.pop(name)
            row |= {other: value} if change == "renamed" else {}
        elif change == "doubled":
            row[f"{AGAIN}{name}"] = random_.choice([row[name], None, "other"])
        elif change == "swapped":
            names = sorted(row)
            row[names[0]], row[names[-1]] = row[names[-1]], row[names[0]]
        else:
            row |= {f"{other}{i}": i for i in range(3000 if change == "many" else 1)}
    if change == "many":
        del rows[60:]


def _size(rows: Rows, random_: Random) -> None:
    """Leave few rows, or make all of them equal, or their prompts, or their texts."""
    num = random_.choice([0, 1, 2, 9, 40])
    first = dict(rows[0])
    match random_.choice(["few", "equal", "one column equal", "texts equal"]):
        case "few":
            del rows[num:]
        case "equal":
            rows[:] = [dict(first) for _ in rows]
        case "one column equal":
            name = random_.choice(list(first))
            for row in rows:
                row[name] = first[name]
        case _:
            for row in rows:
                text = next(value for value in row.values() if isinstance(value, str))
                row |= {k: text for k, value in row.items() if isinstance(value, str)}


def _encoding(file: Path, random_: Random) -> None:
    """Write a text file in another encoding, or with other line ends."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    if file.suffix == ".parquet" or file.suffix == ".arrow":
        data = random_.choice([b"\xef\xbb\xbf" + data, data.replace(b"r", b"\xe4", 3)])
    else:
        text = data.decode("utf-8", "surrogatepass").replace("water", "w\u00e4ter", 5)
        ends = [text.replace("\n", end) for end in ("\r\n", "\r", "\n\n", "\n \n", "\u2028", "")]
        mixed = "".join(part + random_.choice(["\n", "\r\n", "\r"]) for part in text.split("\n"))
        other = random_.choice(["utf-16", "utf-16-le", "latin-1", "utf-32", "utf-7", "utf-8-sig"])
        changed = random_.choice([(text, other), (text, other), *((e, "utf-8") for e in ends)])
        text, name = random_.choice([changed, changed, (mixed, "utf-8")])
        data = text.encode(name, "replace")
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)


def _truncated(file: Path, random_: Random) -> None:
    """Cut a file at any byte, near its ends more often, or add to it."""
    data = file.read_bytes()
    at = random_.choice([0, 1, 4, len(data) // 2, len(data) - 9, len(data) - 1])
    at = random_.choice([at, random_.randrange(len(data))])
    file.write_bytes(
        random_.choice([data[:at], data[:at], data[at:], data + data[:at], b"\0" * 99])
    )


def _flipped(file: Path, random_: Random) -> None:
    """Change some bytes."""
    data = bytearray(file.read_bytes())
    for _ in range(random_.choice([1, 3, 50])):
        data[random_.randrange(len(data))] = random_.choice([random_.randrange(256), *b'"{},\n\0'])
    file.write_bytes(bytes(data))


def _renamed(place: Path, random_: Random) -> Path:
    """Give a file the name of another kind."""
    if place.is_dir():
        place = _files(place)[0]
    suffixes = [".jsonl", ".json", ".csv", ".parquet", ".gz", ".jsonl.gz", ".csv.gz", ".parquet.gz"]
    suffixes += ["", ".", ".JSONL", ".txt", ".arrow", ".jsonl.gz.gz", ".zip"]
    return place.rename(place.parent / f"renamed{random_.choice(suffixes)}")


def _no_file(place: Path, random_: Random) -> Path:
    """Put something else in place of a file, or of one of a folder."""
    file = random_.choice(_files(place))
    if place.is_dir() and random_.random() < 0.3:
        file = place
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    match random_.choice(["loop", "dangling", "pipe", "socket", "device", "folder", "endless"]):
        case "loop":
            file.symlink_to(file)
        case "dangling":
            file.symlink_to(file.parent / "nowhere")
        case "pipe":
            os.mkfifo(file)
        case "socket":
            with socket.socket(socket.AF_UNIX) as here:
                here.bind(os.path.relpath(file))
        case "device":
            file.symlink_to(
                random_.choice(["/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem"])
            )
        case "folder":
            file.mkdir()
        case _:  # a folder that holds itself
            file.mkdir()
            (file / "again").symlink_to(file)
    return place


OF_ROWS = {"value": _value, "column": _column, "size": _size}
OF_FILES = {"encoding": _encoding, "cut or joined": _truncated, "bytes flipped": _flipped}
OF_PLACES = {"other suffix": _renamed, "no plain file": _no_file}
KINDS = (*OF_ROWS, *OF_FILES, *OF_PLACES)
UNCHANGED = "unchanged"
UNCHANGED_PLACES = [(name, place) for name in ROWS_OF for place in PLACES]


def mutant(
    folder: Path, kind: str, random_: Random, fixed: tuple[str, str] | None
) -> tuple[str, Path]:
    """Write a mutant into a folder; return its format and its place, those of ``fixed`` if any."""
    name, form = fixed or (random_.choice(list(ROWS_OF)), random_.choice(PLACES))
    rows = [ROWS_OF[name](i) for i in range(NUM_ROWS)]
    place = folder / form
    if kind in OF_ROWS:
        OF_ROWS[kind](rows, random_)
    _write(place, rows)
    if kind in OF_FILES:
        OF_FILES[kind](random_.choice(_files(place)), random_)
    return name, OF_PLACES[kind](place, random_) if kind in OF_PLACES else place


def config(name: str, place: Path, model: Path, valid: Path) -> dict[str, Any]:
    """Return a config that learns from a place, of data of the format of this name.

    Args:
        name: A key of :data:`ROWS_OF`.
        place: Where the data lie.
        model: A small model.
        valid: A folder with a valid file of every format, ``<name>.jsonl``.
    """
    data: dict[str, Any] = {"name": name, "path": str(place)}
    if name == "helpful":
        own = valid / "preferences.jsonl"
        data = {"name": "preferences", "path": str(own), "helpful_path": str(place)}
    elif name == "tldr":
        data |= {"safety_path": str(valid / "beavertails.jsonl")}
    return {
        "kind": "run",
        "seed": 0,
        "attack": {"name": "ppo", "batch_size": 8, "max_new_tokens": 16},
        "defence": "refusal_loss",
        "model": {"path": str(model), "dtype": "float32"},
        "data": data | {"world": "real", "reward_model": {"batch_size": 8}},
        "evaluation": {"max_new_tokens": 16, "judge": {"batch_size": 8}},
        "cluster": {"cpus_per_rank": 0.5, "cpus_per_rollout_worker": 0.25}
        | {"cpus_per_scorer_worker": 0.25},
    }


def write_valid(folder: Path) -> None:
    """Write a valid file of every format."""
    folder.mkdir()
    for name, row_of in ROWS_OF.items():
        _write(folder / f"{name}.jsonl", [row_of(i) for i in range(NUM_ROWS)])
