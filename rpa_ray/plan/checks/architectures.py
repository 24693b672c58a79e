"""Whether a model is of the kind that it is used as: architecture, weights, head and engine."""

import json
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rpa_ray.config import ConfigError
from rpa_ray.data.errors import last_line
from rpa_ray.plan.checks.model_files import StoredWeight
from rpa_ray.plan.checks.served_models import (
    ARCHITECTURES,
    CPU_HEAD_SIZES,
    check_shapes,
    head_size,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_MEANINGS = {
    True: {"harm", "harmful", "unsafe", "toxic", "dangerous", "malicious", "jailbreak"},
    False: {"harmless", "safe", "nontoxic", "benign", "innocuous", "unharmful", "nonharmful"},
}
_NEGATIONS = {"no", "not", "non"}


class Use(NamedTuple):
    """What a model is used as."""

    num_labels: int | None = None
    """Labels of its head; None for a language model."""
    is_start: bool = False
    """True where a classifier is trained from it, so that it needs no head yet."""
    served_on: str | None = None
    """``cpu`` or ``gpu`` where the rollout engine serves it."""


class Loaded(NamedTuple):
    """What transformers says of loading weights into a class; names as the class has them."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    misshapen: frozenset[tuple[str, tuple[int, ...], tuple[int, ...]]]
    """Name, shape in the files, shape that the class has."""


def check_use(
    folder: Path, weights: Mapping[str, StoredWeight], use: Use, key: str
) -> "PretrainedConfig":
    """Refuse a model of another kind than its use asks for, or without all of its weights.

    Args:
        folder: A model folder with files that are whole.
        weights: What its weight files hold.
        use: What it is used as.
        key: The config path that names it.

    Returns:
        The config of its architecture.

    Raises:
        ConfigError: with what it is and what it should be.
    """
    config = _config_of(folder, key)
    named = _own_architecture(folder)
    _check_kind(named, config, use, key)
    if use.served_on is not None:
        _check_served(named, config, use.served_on, key)
        check_shapes(named, config, json.loads((folder / "config.json").read_text("utf-8")), key)
    if use.num_labels is not None:
        config.num_labels = use.num_labels
    with _quiet():
        _check_weights(folder, config, weights, use, key)
    return config


def check_same_weights(
    folder: Path, weights: Mapping[str, StoredWeight], like: Path, key: str
) -> None:
    """Refuse a language model whose weights are not those of another by name and shape.

    Args:
        folder: Its folder.
        weights: What its weight files hold.
        like: Folder of the other model.
        key: The config path that names the first.

    Raises:
        ConfigError: with what is missing, unknown or of another shape.
    """
    try:
        with _quiet():
            _check_weights(folder, _config_of(like, key), weights, Use(), key)
    except ConfigError as error:
        raise ConfigError(
            key,
            f"hold weights by name and shape as the model under attack ({like}) does",
            error.value,
            "Name a model of the same architecture and sizes.",
        ) from error


def _config_of(folder: Path, key: str) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        with _quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever a config.json makes its class do
        raise ConfigError(
            key,
            "be of an architecture that transformers has itself",
            str(folder / "config.json"),
            f"{last_line(error)}: take another model, or mend the file.",
        ) from error
    return config


def _own_architecture(folder: Path) -> str | None:
    """Return the class that the model was saved from, None where its config does not say."""
    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else None


def _check_kind(named: str | None, config: "PretrainedConfig", use: Use, key: str) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    causal = _names_in(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    classifiers = _names_in(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)
    if use.num_labels is None:
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (
            named is not None and named not in causal
        ):
            remedy = "Take a model that writes text, such as a LlamaForCausalLM."
            raise ConfigError(key, "be a causal language model", named or config.model_type, remedy)
        return
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        rule = "be of an architecture with a sequence classifier in transformers"
        raise ConfigError(key, rule, named or config.model_type, "Take another model.")
    is_classifier = named in classifiers
    if not (is_classifier or use.is_start or named is None):
        remedy = "Take a trained classifier, not the model it was made from."
        raise ConfigError(key, f"be a classifier with {_labels(use)}", named, remedy)
    if config.num_labels != use.num_labels and (is_classifier or not use.is_start):
        raise ConfigError(
            key,
            f"be a classifier with {_labels(use)}" + ", or a model without" * use.is_start,
            f"{config.num_labels} ({', '.join(map(str, config.id2label.values()))})",
            "Take another model, or train one with as many.",
        )
    if config.num_labels == 2 and not use.is_start:
        _check_meaning(config.id2label, key)


def _check_meaning(names: Mapping[int, str], key: str) -> None:
    """Refuse a classifier whose own names of its labels say that they are the other way round."""
    if _says_harm(names[0]) is False or _says_harm(names[1]) is True:
        raise ConfigError(
            key,
            "be a classifier whose label 0 is harmful and label 1 safe",
            f"0: {names[0]}, 1: {names[1]}",
            "Swap the two rows of its head's weights (and bias), and the names in id2label of its "
            "config.json; or take another classifier.",
        )


def _says_harm(label: str) -> bool | None:
    """Return whether a label's name says harm or its absence; None where it says neither."""
    words = set(re.findall(r"[a-z]+", label.lower()))
    found = {harm for harm, of in _MEANINGS.items() if words & of}
    if len(found) != 1:
        return None
    (harm,) = found
    return harm != bool(words & _NEGATIONS)


def _labels(use: Use) -> str:
    return "1 label, the score" if use.num_labels == 1 else f"{use.num_labels} labels"


def _names_in(mapping: Mapping[str, Any]) -> set[str]:
    """Return the classes of one of transformers' tables, which may have several a model type."""
    return {
        name
        for value in mapping.values()
        for name in ((value,) if isinstance(value, str) else tuple(value))
    }


def _check_served(named: str | None, config: "PretrainedConfig", device: str, key: str) -> None:
    """Refuse what the rollout engine cannot serve.

    Raises:
        ConfigError: with what it can.
    """
    if named not in ARCHITECTURES:
        raise ConfigError(
            key,
            "be of an architecture that the rollout engine serves, by its config.json",
            named,
            f"Take a model of one of these: {', '.join(ARCHITECTURES)}.",
        )
    size = head_size(config.get_text_config())
    if device == "cpu" and size is not None and size not in CPU_HEAD_SIZES:
        raise ConfigError(
            key,
            "have attention heads of a size that the engine has kernels for on a CPU "
            f"({', '.join(map(str, CPU_HEAD_SIZES))})",
            size,
            "Take another model, or serve it on a GPU (cluster.gpus_per_rollout_worker).",
        )


def _check_weights(
    folder: Path,
    config: "PretrainedConfig",
    weights: Mapping[str, StoredWeight],
    use: Use,
    key: str,
) -> None:
    """Refuse weight files that do not fill the model, or hold more of it than it has."""
    import transformers
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    is_language_model = use.num_labels is None
    auto = AutoModelForCausalLM if is_language_model else AutoModelForSequenceClassification
    try:
        model = _on_meta(auto, config)
        loaded = _loaded(model, config, weights)
        if use.is_start:
            own = getattr(transformers, _own_architecture(folder) or "", None) or type(
                _on_meta(AutoModel, config)
            )
            # What its own class does not miss is the new head, which is trained.
            missing = loaded.missing & _loaded(_on_meta(own, config), config, weights).missing
            loaded = loaded._replace(missing=missing)
    except Exception as error:  # whatever a config.json makes its class do
        raise ConfigError(
            key,
            "be a model that transformers can build from its config.json",
            str(folder),
            f"{last_line(error)}: take another model, or mend the file.",
        ) from error
    parts = dict(model.base_model.named_children())
    prefix = f"{model.base_model_prefix}."
    # Other heads (a value head, the head of a language model under a classifier) are left unread.
    unread = {n for n in loaded.unexpected if n.removeprefix(prefix).partition(".")[0] in parts}
    if unread or loaded.missing or loaded.misshapen:
        misshapen = {f"{n} {list(has)} for {list(wants)}" for n, has, wants in loaded.misshapen}
        problems = (
            _listing("without", loaded.missing),
            _listing("other shapes:", misshapen),
            _listing("unknown", unread),
        )
        raise ConfigError(
            key,
            f"hold the weights of a {type(model).__name__} as its config.json describes it",
            f"{'; '.join(problem for problem in problems if problem)} in {folder}",
            "Weights that are missing would be drawn at random: save the model again, or take "
            "one of this kind.",
        )


def _on_meta(auto: Any, config: "PretrainedConfig") -> "PreTrainedModel":
    """Return a model of a config without memory for its weights."""
    import torch

    build = auto.from_config if hasattr(auto, "from_config") else auto
    with torch.device("meta"):
        model: PreTrainedModel = build(config)
    return model


def _loaded(
    model: "PreTrainedModel", config: "PretrainedConfig", weights: Mapping[str, StoredWeight]
) -> Loaded:
    """Return what transformers says of loading the weights, with none of them read.

    It is given empty tensors of the shapes in the headers, so that its own rules decide on renamed,
    tied, merged and ignorable weights.
    """
    import torch

    empty = {
        name: torch.empty(weight.shape, dtype=torch.float32, device="meta")
        for name, weight in weights.items()
    }
    _, loading = type(model).from_pretrained(
        None,
        config=config,
        state_dict=empty,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    return Loaded(
        missing=frozenset(loading["missing_keys"]),
        unexpected=frozenset(loading["unexpected_keys"]),
        misshapen=frozenset((n, tuple(has), tuple(w)) for n, has, w in loading["mismatched_keys"]),
    )


def _listing(what: str, names: Set[str]) -> str:
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {shown}{more}" if names else ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from reporting what is refused in one sentence here, or is nothing."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
