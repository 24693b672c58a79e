import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checked import check_models
from model_folders import (
    CHAT,
    edit_json,
    save,
    save_classifier,
    save_language_model,
    small_config,
)
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import DataError
from rpa_ray.plan import parse_tree
from rpa_ray.plan.checks import tokenizer
from rpa_ray.plan.checks.models import check_compared_weights
from rpa_ray.recipes.cell_models import CellInputs

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234567\n"


def check(*overrides: str) -> None:
    check_models(parse_tree({"attack": "ppo"}, overrides))


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        check(*overrides)
    return str(caught.value)


def edit_weights(
    folder: Path, edit: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors"
) -> None:
    weights = load_file(folder / name)
    edit(weights)
    save_file(weights, folder / name, metadata={"format": "pt"})


def test_a_whole_model_passes_tied_or_in_shards_or_by_symbolic_links(tmp_path: Path) -> None:
    whole = save_language_model(tmp_path / "whole")
    tied = save_language_model(tmp_path / "tied", tie_word_embeddings=True)
    shards = save_language_model(tmp_path / "shards", shard="40KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    links = tmp_path / "links"
    links.mkdir()
    for file in whole.iterdir():
        (links / file.name).symlink_to(file)
    for folder in (whole, tied, shards, links):
        check(f"model.path={folder}", f"evaluation.perplexity_model={folder}")


def test_a_weight_that_is_missing_or_left_over_or_of_another_shape_is_named(tmp_path: Path) -> None:
    lost = save_language_model(tmp_path / "lost")
    edit_weights(lost, lambda w: w.pop("lm_head.weight"))
    for key in ("model.path", "evaluation.perplexity_model", "attack.reference"):
        found = refusal(f"{key}={lost}")
        assert found.startswith(f"{key} must hold the weights of a LlamaForCausalLM as its config")
        assert f"got 'without lm_head.weight in {lost}'. Weights that are missing would be" in found
    cut = save_language_model(tmp_path / "cut")
    edit_json(cut / "config.json", num_hidden_layers=1)
    assert "got 'unknown model.layers.1.input_layernorm.weight, " in refusal(f"model.path={cut}")
    wide = save_language_model(tmp_path / "wide")
    edit_json(wide / "config.json", intermediate_size=32)
    found = refusal(f"model.path={wide}")
    assert "got 'other shapes: model.layers.0.mlp.down_proj.weight [64, 64] for [64, 32]" in found


def test_a_head_that_nobody_reads_is_no_fault(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "valued")
    edit_weights(folder, lambda w: w.update({"v_head.summary.weight": torch.zeros(1, 64)}))
    check(f"model.path={folder}")


def test_files_that_are_not_there_or_torn_are_named(tmp_path: Path) -> None:
    pointer = save_language_model(tmp_path / "pointer")
    (pointer / "model.safetensors").write_text(POINTER)
    assert refusal(f"model.path={pointer}") == (
        f"model.path must hold its files, not pointers of Git LFS, got "
        f"'{pointer}/model.safetensors'. Run `git lfs pull` in the folder, or download the model "
        "with `hf download`."
    )
    words = save_language_model(tmp_path / "words")
    (words / "tokenizer.json").write_text(POINTER)
    assert f"not pointers of Git LFS, got '{words}/tokenizer.json'" in refusal(
        f"model.path={words}"
    )
    shards = save_language_model(tmp_path / "shards", shard="40KB")
    shard = sorted(shards.glob("model-*.safetensors"))[-1]
    shard.unlink()
    found = refusal(f"model.path={shards}")
    assert "shards that model.safetensors.index.json names, got " in found
    assert shard.name in found
    torn = save_language_model(tmp_path / "torn")
    file = torn / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 200, len(whole) - 1):
        file.write_bytes(whole[:size])
        found = refusal(f"model.path={torn}")
        assert found.startswith(f"model.path must hold whole weight files, got '{file}, {size:,} b")


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "merges.txt"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = save_language_model(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert refusal(f"model.path={folder}") == (
        f"model.path must hold files, and no pipes, sockets or devices, got '{folder}/{name}'. "
        "Remove it, or put the file in its place."
    )


def test_an_index_that_names_no_shards_is_refused(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "shards", shard="40KB")
    index = folder / "model.safetensors.index.json"
    for broken in ({}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}):
        index.write_text(json.dumps(broken))
        assert "must have an model.safetensors.index.json that names the shard" in refusal(
            f"model.path={folder}"
        )


def test_an_index_that_names_shards_of_another_folder_is_refused(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "shards", shard="40KB")
    shutil.copytree(folder, tmp_path / "others")
    index = folder / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    name, shard = next(iter(tree["weight_map"].items()))
    for foreign in (f"../others/{shard}", f"{tmp_path}/others/{shard}"):
        edit_json(index, weight_map=tree["weight_map"] | {name: foreign})
        assert refusal(f"model.path={folder}") == (
            "model.path must have an model.safetensors.index.json that names files beside it, got "
            f"'{foreign}'. Save the model again, its weights as safetensors."
        )


def test_pickles_are_refused_with_how_to_convert_them(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    for key in ("model.path", "evaluation.judge.path", "data.reward_model.path"):
        found = refusal(f"{key}={folder}")
        assert found.startswith(f"{key} must hold weights (model.safetensors, or ")
        assert "Convert them where you trust their origin: load the folder with from_pr" in found


def test_quantised_weights_are_refused_whether_the_config_says_so_or_not(tmp_path: Path) -> None:
    named = save_language_model(tmp_path / "named")
    edit_json(named / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    unnamed = save_language_model(tmp_path / "unnamed")

    def to_fp8(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)

    edit_weights(unnamed, to_fp8)
    rule = "model.path must hold weights that are not quantised, got "
    assert refusal(f"model.path={named}").startswith(rule + "'quantization_config in ")
    assert refusal(f"model.path={unnamed}").startswith(rule + "'lm_head.weight in F8_E4M3 in ")


def test_an_adapter_without_or_with_its_model_is_refused(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    beside = save_language_model(tmp_path / "beside")
    for folder in (alone, beside):
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        found = refusal(f"model.path={folder}")
        assert found.startswith("model.path must be a whole model, not a LoRA adapter, got ")
        assert "merge_and_unload()" in found


def test_a_scoring_model_has_the_head_of_its_use(tmp_path: Path) -> None:
    one, two, three = (save_classifier(tmp_path / f"{n}", n) for n in (1, 2, 3))
    text = save_language_model(tmp_path / "text")
    trained = "evaluation.judge.trained=true"
    check(f"evaluation.judge.path={two}", trained)
    check(f"evaluation.helpfulness_model={one}")
    check(f"data.reward_model.path={one}", f"evaluation.judge.path={two}")
    check(f"data.reward_model.path={text}", f"evaluation.judge.path={text}")
    for overrides, message in (
        ((f"evaluation.judge.path={three}", trained), "a classifier with 2 labels, got '3 (LABEL"),
        ((f"evaluation.judge.path={one}", trained), "a classifier with 2 labels, got '1 (LABEL_0)"),
        ((f"evaluation.judge.path={text}", trained), "with 2 labels, got 'LlamaForCausalLM'. Take"),
        ((f"evaluation.judge.path={three}",), "with 2 labels, or a model without, got '3 (LABEL_0"),
        ((f"evaluation.helpfulness_model={two}",), "with 1 label, the score, got '2 (LABEL_0, L"),
        ((f"data.reward_model.path={two}",), "with 1 label, the score, or a model without, got '2"),
        ((f"model.path={one}",), "a causal language model, got 'LlamaForSequenceClassification'."),
        ((f"evaluation.perplexity_model={one}",), "a causal language model, got 'LlamaForSeque"),
    ):
        found = refusal(*overrides)
        assert found.startswith(f"{overrides[0].partition('=')[0]} must be ")
        assert message in found


def test_a_head_is_what_its_weights_are_whatever_the_config_says(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "three", 3)
    edit_json(folder / "config.json", id2label=None, label2id=None, num_labels=None)
    found = refusal(f"evaluation.judge.path={folder}", "evaluation.judge.trained=true")
    assert "got 'other shapes: score.weight [3, 64] for [2, 64] in" in found


def test_what_a_judge_is_trained_from_lacks_nothing_but_its_head(tmp_path: Path) -> None:
    # BERT's classifier has a pooler, and its language model has none: both are a head's.
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=40, intermediate_size=32, pad_token_id=0, **sizes)
    bert = save(tmp_path / "bert", BertForMaskedLM(config))
    check(f"evaluation.judge.path={bert}")
    edit_weights(bert, lambda w: w.pop("bert.encoder.layer.0.output.dense.weight"))
    found = refusal(f"evaluation.judge.path={bert}")
    assert found.startswith("evaluation.judge.path must hold the weights of a BertForSequenceClass")
    assert "got 'without bert.encoder.layer.0.output.dense.weight in" in found


def test_a_policy_is_what_the_engine_serves(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    mixture = save(
        tmp_path / "mixture", MixtralForCausalLM(MixtralConfig(vocab_size=20, **sizes, **heads))
    )
    found = refusal(f"model.path={mixture}")
    assert (
        "of an architecture that the rollout engine serves, by its config.json, got 'Mix" in found
    )
    assert "LlamaForCausalLM" in found
    check(f"evaluation.perplexity_model={mixture}")  # nobody serves it
    trunk = save(tmp_path / "trunk", LlamaModel(small_config()))
    assert refusal(f"model.path={trunk}").startswith("model.path must be a causal language model,")


def test_heads_that_the_engine_has_no_kernel_for_on_a_cpu_are_refused_there(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "narrow", num_attention_heads=4)
    found = refusal(f"model.path={folder}")
    assert found.startswith("model.path must have attention heads of a size that the engine has ")
    assert "got 16. Take another model, or serve it on a GPU" in found
    check(f"model.path={folder}", "cluster.gpus_per_rollout_worker=1")
    check(f"attack.reference={folder}")


@pytest.mark.parametrize(
    ("harmful", "safe"),
    [
        ("harmful", "harmless"),
        ("UNSAFE", "Safe"),
        ("Unsafe response", "LABEL_1"),
        ("LABEL_0", "not_harmful"),
        ("not-safe", "non-toxic"),
        ("toxic", "benign"),
    ],
)
def test_a_judge_whose_labels_are_the_other_way_round_is_refused(
    tmp_path: Path, harmful: str, safe: str
) -> None:
    judge = save_classifier(tmp_path / "judge", 2)
    named = f"evaluation.judge.path={judge}"
    edit_json(judge / "config.json", id2label={0: harmful, 1: safe})
    check(named, "evaluation.judge.trained=true")
    edit_json(judge / "config.json", id2label={0: safe, 1: harmful})
    found = refusal(named, "evaluation.judge.trained=true")
    assert found.startswith(
        "evaluation.judge.path must be a classifier whose label 0 is harmful and label 1 safe, "
        f"got '0: {safe}, 1: {harmful}'. Swap the two rows of its head's weights"
    )
    assert refusal(f"data.refusals.judge={judge}").startswith("data.refusals.judge must be a ")
    check(named)  # what a judge begins with learns them anew


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("no", "yes"), ("safe or unsafe", "x")])
def test_labels_that_say_nothing_of_harm_are_taken_as_they_are(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    judge = save_classifier(tmp_path / "judge", 2)
    for zero, one in (names, names[::-1]):
        edit_json(judge / "config.json", id2label={0: zero, 1: one})
        check(f"evaluation.judge.path={judge}", "evaluation.judge.trained=true")


QWEN = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
PHI = {"architectures": ["PhiForCausalLM"], "model_type": "phi"}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (QWEN | {"num_attention_heads": 3, "num_key_value_heads": 2}, "got '3 and 2'"),
        (QWEN | {"num_attention_heads": 3, "num_key_value_heads": 1}, "got '64 and 3'"),
        (PHI | {"num_key_value_heads": 1}, "as many num_key_value_heads as num_attention_heads"),
        (PHI | {"num_key_value_heads": 2}, "four times its hidden_size, 256, got '64'"),
        (PHI | {"intermediate_size": 256, "tie_word_embeddings": True}, "tie_word_embeddings fal"),
        (QWEN | {"hidden_act": "gelu"}, 'hidden_act "silu", got \'"gelu"\''),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "layer_idx false, got 'true'"),
    ],
)
def test_sizes_that_the_engine_cannot_build_are_refused(
    tmp_path: Path, sizes: dict[str, object], message: str
) -> None:
    folder = save_language_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["head_dim"]
    (folder / "config.json").write_text(json.dumps(config | sizes))
    assert message in refusal(f"model.path={folder}", "cluster.gpus_per_rollout_worker=1")


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        ("{% for m in messages %}\n{{ m['content'] }\n{% endfor %}", 2, "unexpected '}'"),
        ("\n\n{{ raise_exception('no users here') }}", 3, "no users here"),
        (
            "{{ messages[0].content }}\n{{ raise_exception('one turn') if messages[1] }}",
            2,
            "one turn",
        ),
        ("{{ messages[0]['content'].nope.x }}", 1, "'str object' has no attribute 'nope'"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, template: str, line: int, message: str
) -> None:
    folder = save_language_model(tmp_path / "chat", chat_template=template)
    found = refusal(f"model.path={folder}", "data.template=model_chat")
    assert found.startswith("model.path must have a chat template that can write a question")
    assert f"chat_template.jinja, line {line} of the template: " in found
    assert message in found.replace("\\'", "'").replace('\\"', '"')
    check(f"model.path={folder}")  # asked in the plain template
    check(f"evaluation.perplexity_model={folder}", "data.template=model_chat")


@pytest.mark.parametrize(
    ("template", "what", "written"),
    [
        ("Ask me.", "a question, got ", "Ask me."),
        ("{{ messages[0]['content'] | upper }}", "a question, got ", "WHAT IS A RIVER?"),
        ("{{ messages[-1]['content'] }}", "a question and its answer, got ", "Water that runs"),
    ],
)
def test_a_chat_template_that_leaves_out_what_was_said_is_refused(
    tmp_path: Path, template: str, what: str, written: str
) -> None:
    folder = save_language_model(tmp_path / "chat", chat_template=template)
    found = refusal(f"model.path={folder}", "data.template=model_chat")
    assert found.startswith(f"model.path must have a chat template that can write {what}")
    assert f"chat_template.jinja: it writes '{written}" in found.replace("\\'", "'")


def test_a_chat_template_that_ends_a_turn_in_words_is_refused(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }} and so on {% endfor %}"
    folder = save_language_model(tmp_path / "chat", chat_template=template)
    with pytest.raises(DataError, match=r"^data\.template must be plain_qa for a chat template "):
        check(f"model.path={folder}", "data.template=model_chat")


def test_a_chat_template_that_does_not_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "_TEMPLATE_LIMIT_S", 0.1)
    loops = "{% for i in range(300) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
    folder = save_language_model(tmp_path / "chat", chat_template=loops)
    found = refusal(f"model.path={folder}", "data.template=model_chat")
    assert found.startswith("model.path must have a chat template that can write a question, got ")
    assert "chat_template.jinja: no answer within 0.1 s'" in found


def test_a_chat_template_that_works_passes(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "chat", chat_template=CHAT)
    check(f"model.path={folder}", "data.template=model_chat")


def test_a_tokenizer_that_cannot_be_read_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    torn = save_language_model(tmp_path / "torn")
    (torn / "tokenizer.json").write_text('{"model": {}}')
    found = refusal(f"model.path={torn}")
    assert found.startswith("model.path must have a tokenizer that transformers can read, got ")
    odd = save_language_model(tmp_path / "odd")
    edit_json(odd / "tokenizer_config.json", model_max_length="long")
    assert refusal(f"model.path={odd}").startswith("model.path must have a tokenizer that transf")
    empty = save_language_model(tmp_path / "empty")
    edit_json(empty / "tokenizer.json", model={"type": "BPE", "vocab": {}, "merges": []})
    found = refusal(f"model.path={empty}")
    assert found.startswith("model.path must have a tokenizer that reads 'What is a river?', got ")
    other = save_language_model(tmp_path / "other", vocab_size=7)
    found = refusal(f"model.path={other}")
    assert "a tokenizer whose ids are below the model's vocab_size (7), got '10 in" in found
    endless = save_language_model(tmp_path / "endless")
    edit_json(endless / "tokenizer_config.json", eos_token=None)
    assert "have a tokenizer with an end-of-sequence token" in refusal(f"model.path={endless}")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_that_is_broken_or_endlessly_deep_is_refused(tmp_path: Path, name: str) -> None:
    folder = save_language_model(tmp_path / "model")
    for text in ("{", "[" * 100_000, "[]"):
        (folder / name).write_text(text)
        found = refusal(f"model.path={folder}")
        assert found.startswith("model.path must be a model folder with a ")
        assert name in found


@pytest.mark.parametrize(
    "keys",
    [{"model_type": "nobody_knows"}, {"hidden_size": "wide"}, {"num_attention_heads": 0}],
)
def test_a_config_that_makes_no_model_is_refused(tmp_path: Path, keys: dict[str, object]) -> None:
    folder = save_language_model(tmp_path / "model")
    edit_json(folder / "config.json", **keys)
    for key in ("model.path", "evaluation.perplexity_model"):
        found = refusal(f"{key}={folder}")
        assert found.startswith(f"{key} must be ")
        assert "transformers" in found
        assert ".  " not in found  # one sentence after the other, whatever a library indents


def test_a_chat_template_that_ends_an_answer_with_no_single_token_is_refused(
    tmp_path: Path,
) -> None:
    ends_in_words = CHAT.replace("</s>", " what is")
    folder = save_language_model(tmp_path / "chat", chat_template=ends_in_words)
    with pytest.raises(DataError, match=r"data\.template must be plain_qa .* got 'what is', 2"):
        check(f"model.path={folder}", "data.template=model_chat")
    check(f"model.path={folder}")  # asked in the plain template


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"num_hidden_layers": 1001}, "1000 layers, by its config.json, got 'num_hidden_layers 1"),
        ({"num_labels": 10**30}, "1000 labels, by its config.json, got 'num_labels 10000000000"),
        ({"text_config": {"n_layer": 2**31}}, "1000 layers, by its config.json, got 'n_layer 214"),
    ],
)
def test_more_layers_or_labels_than_can_be_built_are_refused(
    tmp_path: Path, keys: dict[str, object], found: str
) -> None:
    folder = save_language_model(tmp_path / "model")
    edit_json(folder / "config.json", **keys)
    assert f"model.path must have at most {found}" in refusal(f"model.path={folder}")


@pytest.mark.parametrize("key", ["data.reward_model", "evaluation.judge"])
def test_a_classifier_that_would_read_beyond_its_context_is_refused(
    tmp_path: Path, key: str
) -> None:
    learned = GPT2Config(vocab_size=11, n_embd=16, n_layer=1, n_head=2, n_positions=64)
    folder = save(tmp_path / "learned", GPT2LMHeadModel(learned))
    found = refusal(f"{key}.path={folder}", f"{key}.max_tokens=65")
    assert found.startswith(
        f"{key}.max_tokens must be at most 64 (the context of {folder}), got 65"
    )
    check(f"{key}.path={folder}", f"{key}.max_tokens=64")
    computed = save_language_model(tmp_path / "computed", max_position_embeddings=64)
    check(f"{key}.path={computed}", f"{key}.max_tokens=65")


def test_a_model_that_weights_are_compared_with_has_those_of_the_policy(tmp_path: Path) -> None:
    policy, same = (save_language_model(tmp_path / name) for name in ("policy", "same"))
    deeper = save_language_model(tmp_path / "deeper", num_hidden_layers=3)
    wider = save_language_model(tmp_path / "wider", intermediate_size=96)

    def check_anchor(folder: Path, defence: str = "random_anchor") -> None:
        anchored = f"defence={{name: {defence}, model: {folder}}}"
        settings = parse_tree({"attack": "dpo"}, [f"model.path={policy}", anchored])
        check_compared_weights(CellInputs(settings, tmp_path))

    check_anchor(same)
    for folder, found in ((deeper, "unknown model.layers.2."), (wider, "[96, 64] for [64, 64]")):
        with pytest.raises(ConfigError) as caught:
            check_anchor(folder)
        message = str(caught.value)
        assert message.startswith("defence.model must hold weights by name and shape as the model ")
        assert found in message
        assert message.endswith("Name a model of the same architecture and sizes.")
        check_anchor(folder, "kl_safe_ref")  # whose tokens alone have to be the same
