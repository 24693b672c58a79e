"""Mutants of model folders: configs, tokenizers, chat templates, weights, and what is no file."""

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from mutated.configs import OF_TREES, places

logging.disable_progress_bar()
logging.set_verbosity_error()

Random = random.Random
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
LLAMA = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
LLAMA |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 1024}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 1024}
ARCHITECTURES: dict[str, dict[str, int]] = {
    **dict.fromkeys(["llama", "qwen2", "gpt_neox", "phi3", "mistral"], LLAMA),
    "gemma2": LLAMA | {"head_dim": 32},
    "opt": LLAMA | {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt2": GPT,
}
"""Sizes by model type."""
SIZES = (0, -1, 1, 3, 2**20, 2**31, 2**63, 10**30, 1.5, float("nan"), "64", True, [64], None)
TEXTS = ("", "{", "[]", "null", "3", "\0", "\ud800", "[" * 10**5, '{"a": NaN}', "<html>", "{}", "x")
TEMPLATES = (
    "{{ raise_exception('no') }}",
    "{% for m in messages %}",
    "{{ nothing.at.all }}",
    "{{ 1 / 0 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(3000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 10**7 }}",
    "{{ 'x' * 10**12 }}",
    "{{ messages[0].content * 10**6 }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__ }}",
    "{% include 'other' %}",
    "",
    "fixed",
    "{{ messages }}",
    "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
    "{% for m in messages %}{{ m['content'] }}\u202e\0{% endfor %}",
    "{% for m in messages %}{{ m['content'] }} and so it ended{% endfor %}",
    "{{ messages[1].content }}",
    "{{ strftime_now('%Y') }}{{ messages[-1].content }}",
)
GENERATION: tuple[Any, ...] = (
    *(-1, 10**9, 2**63, 10**30, "2", "</s>", [], [2, "3"], [[2]], [None], [2.5], 2.0, True),
    *({"id": 2}, [10**9], list(range(10**4)), None, float("nan")),
)


def tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes."""
    letters = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    names = dict(zip(["pad_token", "bos_token", "eos_token", "unk_token"], SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=own, chat_template=chat_template, **names)


def save(
    folder: Path, model_type: str, *, chat: bool = False, num_labels: int = 0, shard: str = "1GB"
) -> None:
    """Write a small model and its tokenizer."""
    words = tokenizer(CHAT if chat else None)
    ids = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **ids, **ARCHITECTURES[model_type])
    auto = AutoModelForCausalLM
    if num_labels:
        config.num_labels, auto = num_labels, AutoModelForSequenceClassification
    torch.manual_seed(0)
    auto.from_config(config).float().save_pretrained(folder, max_shard_size=shard)
    words.save_pretrained(folder)


# ---------------------------------------------------------------------------- mutations


def _edit(file: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    change(tree)
    file.write_text(json.dumps(tree))


def _config(folder: Path, random_: Random) -> None:
    """Mutate ``config.json`` as a tree."""
    changes = [OF_TREES[k] for k in OF_TREES if k != "include broken"]
    change = random_.choice(changes)
    _edit(folder / "config.json", lambda tree: change(tree, random_))


def _sizes(folder: Path, random_: Random) -> None:
    """Write another size into ``config.json``."""
    tree = json.loads((folder / "config.json").read_text("utf-8"))
    names = [k for k, v in tree.items() if isinstance(v, int) and not isinstance(v, bool)]
    name = random_.choice([*names, "num_hidden_layers", "n_layer", "head_dim", "vocab_size"])
    size = random_.choice(SIZES)
    _edit(folder / "config.json", lambda tree: tree.update({name: size}))


def _kind(folder: Path, random_: Random) -> None:
    """Call the model another one than it is."""
    named = [*ARCHITECTURES, "bert", "t5", "whisper", "mamba", "none", "", 3, None, ["llama"]]
    classes = ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", "No", 3, None]
    classes += ["LlamaForSequenceClassification", "__init__", "os", "\0", "PreTrainedModel"]
    keys: dict[str, Any] = random_.choice(
        [
            {"model_type": random_.choice(named)},
            {"architectures": random_.choice([[random_.choice(classes)], "Llama", [], {}, 3])},
            {"quantization_config": random_.choice([{}, {"quant_method": "gptq"}, "gptq", 3])},
            {"auto_map": random_.choice([{"AutoConfig": "a.B"}, 3]), "model_type": "own"},
            {"dtype": random_.choice(["float16", "int8", "float3", 3, None, "os.system"])},
            {"rope_parameters": random_.choice([3, {}, {"rope_type": "none"}, [], "x"])},
            {"tie_word_embeddings": random_.choice([True, "yes", 3])},
            {"attn_implementation": "none"},
            {"_name_or_path": "\0", "transformers_version": random_.choice([3, "9.9.9", None])},
        ]
    )
    _edit(folder / "config.json", lambda tree: tree.update(keys))


def _broken(folder: Path, random_: Random) -> None:
    """Break the text of a JSON file."""
    file = random_.choice(sorted(folder.glob("*.json")))
    data = file.read_bytes()
    at = random_.randrange(len(data))
    text = random_.choice(TEXTS).encode("utf-8", "surrogatepass")
    cut = data[:at] + random_.choice([b"", b"\xff", b",", b'"', b"\0"])
    changed = random_.choice([text, cut, cut + data[at:], data.decode().encode("utf-16")])
    file.write_bytes(changed)


def _tokenizer(folder: Path, random_: Random) -> None:
    """Mutate a file of the tokenizer as a tree, or lose one."""
    file = folder / random_.choice(["tokenizer.json", "tokenizer_config.json"])
    change = random_.choice([OF_TREES[k] for k in OF_TREES if k != "include broken"])
    if random_.random() < 0.1:
        file.unlink()
    elif random_.random() < 0.3:
        token = random_.choice(["</s>", "nowhere", "", 3, None, {"content": "x"}, [], "\ud800"])
        name = random_.choice(["eos_token", "bos_token", "pad_token", "unk_token", "extra"])
        others: dict[str, Any] = {
            "tokenizer_class": "No",
            "model_max_length": random_.choice(SIZES),
        }
        keys = random_.choice([{name: token}, {name: token}, others])
        _edit(folder / "tokenizer_config.json", lambda tree: tree.update(keys))
    else:
        _edit(file, lambda tree: change(tree, random_) if places(tree) else None)


def _generation(folder: Path, random_: Random) -> None:
    """Put something else into ``generation_config.json``."""
    key = random_.choice(["eos_token_id"] * 5 + ["pad_token_id", "temperature", "do_sample", "x"])
    value = random_.choice(GENERATION)
    _edit(folder / "generation_config.json", lambda tree: tree.update({key: value}))


def _template(folder: Path, random_: Random) -> None:
    """Write another chat template."""
    text = random_.choice(TEMPLATES)
    file = folder / "chat_template.jinja"
    if random_.random() < 0.3:
        file.unlink(missing_ok=True)
        value = random_.choice(
            [text, 3, [], {"name": "a"}, [{"name": "default", "template": text}]]
        )
        _edit(folder / "tokenizer_config.json", lambda tree: tree.update(chat_template=value))
    else:
        file.write_bytes(random_.choice([text, text, f"{CHAT}{text}"]).encode())


def _header(folder: Path, random_: Random) -> None:
    """Change what the header of a weight file says."""
    file = random_.choice(sorted(folder.glob("*.safetensors")))
    data = file.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    name = random_.choice([n for n in header if n != "__metadata__"])
    one = header[name]
    match random_.randrange(12):
        case 0:
            file.write_bytes(struct.pack("<Q", random_.choice([0, 2**31, 2**63])) + data[8:])
            return
        case 1:
            at = random_.choice([0, 7, 8, 8 + size, len(data) // 2, len(data) - 1])
            file.write_bytes(data[:at])
            return
        case 2:
            file.write_bytes(data + b"\0" * 64)
            return
        case 3:
            one["dtype"] = random_.choice(["F64", "F16", "I8", "F8_E4M3", "BOOL", "none", 3])
        case 4:
            one["data_offsets"] = random_.choice([[0, 4], [-1, 4], [0], [4, 0], [0, 2**62], "x"])
        case 5:
            one["shape"] = random_.choice([[], [-1, 2], [2**40], one["shape"][::-1], "x", [1.5]])
        case 6:
            header["__metadata__"] = random_.choice([{"format": "tf"}, {"format": 3}, [], None, {}])
        case 7:
            header[random_.choice(["", "\0", "x", "model"])] = header.pop(name)
        case _:
            weights = load_file(file)
            change = random_.choice(["lost", "added", "shape", "dtype", "none"])
            if change == "lost":
                del weights[name]
            elif change == "added":
                weights[f"{name}.more"] = torch.zeros(2)
            elif change == "shape":
                weights[name] = torch.zeros(random_.choice([(1,), (3, 5), (0,), ()]))
            elif change == "dtype":
                kinds = [torch.float16, torch.int64, torch.bool, torch.complex64, torch.int8]
                weights[name] = weights[name].to(random_.choice(kinds))
            save_file({} if change == "none" else weights, file, metadata={"format": "pt"})
            return
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def _index(folder: Path, random_: Random) -> None:
    """Have an index name shards that are lost, elsewhere, or those of others."""
    file = folder / "model.safetensors.index.json"
    shutil.copy(sorted(folder.glob("*.safetensors"))[0], folder.parent / "elsewhere.safetensors")
    index = json.loads(file.read_text("utf-8"))
    shards = index["weight_map"]
    name = random_.choice(list(shards))
    other = ["nowhere.safetensors", "../elsewhere.safetensors", "config.json", "", ".", "\0", 3]
    other += [str(folder.parent / "elsewhere.safetensors"), next(iter(shards.values())), "a" * 300]
    match random_.choice(["shard", "shard", "all", "lost", "file", "map", "tree"]):
        case "shard":
            shards[name] = random_.choice(other)
        case "all":
            to = random_.choice(other)
            index["weight_map"] = dict.fromkeys(shards, to)
        case "lost":
            del shards[name]
        case "file":
            (folder / random_.choice(sorted(set(shards.values())))).unlink()
        case "map":
            index["weight_map"] = random_.choice([{}, [], None, "x", {"a": 1}])
        case _:
            index = random_.choice([{}, {"metadata": {}}, {"weight_map": shards, "metadata": 3}])
    file.write_text(json.dumps(index))


def _file(folder: Path, random_: Random) -> None:
    """Put something else in place of a file, or take it away."""
    file = random_.choice(sorted(folder.iterdir()))
    weights = sorted(folder.glob("*.safetensors"))
    match random_.randrange(9):
        case 0:
            file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        case 1:
            for weight in weights:
                weight.rename(weight.with_name("pytorch_model.bin"))
        case 2:
            (folder / "adapter_config.json").write_text(random_.choice(['{"r": 1}', "{", ""]))
        case 3:
            file.unlink()
        case 4:
            file.write_bytes(b"")
        case 5:
            file.unlink()
            os.mkfifo(file)
        case 6:
            file.unlink()
            file.symlink_to(random_.choice([file, folder, "/dev/zero", "/dev/null"]))
        case 7:
            file.unlink()
            file.mkdir()
        case _:
            for one in folder.iterdir():
                one.unlink()


MUTATIONS: dict[str, Callable[[Path, Random], None]] = {
    "config mutated": _config,
    "size in config": _sizes,
    "other model": _kind,
    "broken JSON": _broken,
    "tokenizer": _tokenizer,
    "generation config": _generation,
    "chat template": _template,
    "weight header": _header,
    "index of shards": _index,
    "file": _file,
}
KINDS = tuple(MUTATIONS)
UNCHANGED = "unchanged"


def mutant(folder: Path, kind: str, random_: Random) -> dict[str, Any]:
    """Write a mutant into a folder; return a config that names it."""
    use = random_.choice(["model.path"] * 4 + ["judge", "perplexity", "trunk"])
    is_chat = kind == "chat template" or random_.random() < 0.3
    if is_chat or kind == "generation config":
        use = "model.path"
    shard = "60KB" if kind == "index of shards" else "1GB"
    num_labels = 2 if use == "judge" else 0
    types = [t for t in ARCHITECTURES if not (num_labels and t == "gpt_neox")]
    model = folder / "model"
    save(model, random_.choice(types), chat=is_chat, num_labels=num_labels, shard=shard)
    if kind != UNCHANGED:
        MUTATIONS[kind](model, random_)
    config: dict[str, Any] = {
        "kind": "run",
        "attack": {"name": "ppo"},
        "model": {"dtype": "float32"},
        "cluster": {"cpus_per_rank": 0.5, "cpus_per_rollout_worker": 0.25}
        | {"cpus_per_scorer_worker": 0.25},
    }
    match use:
        case "judge":
            config["evaluation"] = {"judge": {"path": str(model), "trained": True}}
        case "perplexity":
            config["evaluation"] = {"perplexity_model": str(model)}
        case "trunk":
            config["data"] = {"reward_model": {"path": str(model)}}
        case _:
            config["model"]["path"] = str(model)
            config["data"] = {"template": "model_chat" if is_chat else "plain_qa"}
    return config
