"""A Hugging Face sequence classifier as a scorer: reward models, cost models, harm judges."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from rpa_ray.scoring.batching import (
    check_template,
    class_scores,
    cut_to,
    in_batches,
    padding_id,
    read_tokens,
)
from rpa_ray.scoring.weights import scoring_dtype

ClassifierMode = Literal["reward", "harm_probability"]

_NUM_LABELS: dict[ClassifierMode, int] = {"reward": 1, "harm_probability": 2}
_HARMFUL_LABEL = 0
_NO_ANSWER_HARM = 0.0


class SequenceClassifierScorer:
    """Scores the text of prompt and answer in one template, in fp32.

    ``reward`` is the raw scalar logit. ``harm_probability`` is the softmax probability of label 0,
    which is the harmful one in the published judge; an answer without a visible character is
    harmless by rule, 0.0, whatever the judge makes of it. Texts longer than ``max_length`` tokens
    lose their end.
    """

    def __init__(
        self,
        path: Path,
        *,
        mode: ClassifierMode,
        template: str,
        max_length: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        """Load model and tokenizer from a folder.

        Raises:
            ValueError: If the model has another number of labels than the mode needs, or lacks
                weights.
        """
        check_template(template)
        self._mode = mode
        self._template = template
        self._batch_size = batch_size
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._model = _load_classifier(path, _NUM_LABELS[mode], device).to(device)
        self._max_length = read_tokens(self._model, self._tokenizer, max_length)
        self._pad_token_id = padding_id(self._tokenizer)
        self._model.config.get_text_config().pad_token_id = self._pad_token_id

    def score(self, texts: Sequence[tuple[str, str]]) -> list[float]:
        """Return one score for each (prompt, answer) pair, in their order."""
        judged = [i for i, (_, answer) in enumerate(texts) if self._needs_model(answer)]
        filled = [self._template.format(prompt=texts[i][0], answer=texts[i][1]) for i in judged]
        rows = self._tokenizer(filled)["input_ids"] if filled else []
        scores = in_batches(
            cut_to(rows, self._max_length),
            batch_size=self._batch_size,
            pad_token_id=self._pad_token_id,
            compute=self._score_batch,
        )
        of_row = dict(zip(judged, scores, strict=True))
        return [of_row.get(i, _NO_ANSWER_HARM) for i in range(len(texts))]

    def _needs_model(self, answer: str) -> bool:
        return self._mode == "reward" or bool(answer.strip())

    def _score_batch(
        self, input_ids: Tensor, attention_mask: Tensor, rows: list[int]
    ) -> list[float]:
        with torch.no_grad():
            logits = class_scores(
                self._model, input_ids.to(self._device), attention_mask.to(self._device)
            ).float()  # [batch, labels]
        if self._mode == "reward":
            return [float(logit) for logit in logits[:, 0]]
        return [float(p) for p in logits.softmax(dim=-1)[:, _HARMFUL_LABEL]]


def _load_classifier(path: Path, num_labels: int, device: torch.device) -> PreTrainedModel:
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        path,
        dtype=scoring_dtype(path, device),
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    if model.config.num_labels != num_labels:
        raise ValueError(
            f"{path} must be a classifier with {num_labels} label(s), got "
            f"{model.config.num_labels}. Give another model or another kind of scorer."
        )
    if loading["missing_keys"]:
        raise ValueError(
            f"{path} must hold all weights of a classifier, got none for "
            f"{sorted(loading['missing_keys'])[:3]}. Give a trained classifier, not its base model."
        )
    classifier: PreTrainedModel = model.eval()
    return classifier
