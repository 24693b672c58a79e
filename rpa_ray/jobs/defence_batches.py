"""What defences draw batches of: refusals, pairs of both answers, harmless prompts with answers."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from rpa_ray.data.collate import (
    TokenRow,
    collate_pairs,
    collate_tokens,
    encode_answered,
    encode_begun,
)
from rpa_ray.data.recovery import recovery_row
from rpa_ray.data.rows import Answered, SafePair
from rpa_ray.data.template import Template
from rpa_ray.data.told_apart import require_told_apart, sides
from rpa_ray.learner.ranks import Ranks
from rpa_ray.plugin import Need
from rpa_ray.recipes.cell_data import CellData
from rpa_ray.scoring.batching import padding_id
from rpa_ray.sources.dataset import DatasetSource


@dataclass(frozen=True, kw_only=True)
class DefenceData:
    """The rows on the defence's side as the policy reads them."""

    tokenizer: PreTrainedTokenizerBase
    data: CellData
    max_tokens: int
    """Longer rows lose their end."""
    batch_size: int
    """Rows of one batch, over all ranks."""
    seed: int
    ranks: Ranks
    cut_by: str = "data.path"
    """The config path that says how long a row is; ``data.path`` where the context does."""

    def batches(self, needs: Set[Need]) -> dict[Need, DatasetSource[Any, Any]]:
        """Return a source for each of the needs that asks for batches."""
        sources: dict[Need, DatasetSource[Any, Any]] = {}
        if Need.SAFE_BATCH in needs:
            sources[Need.SAFE_BATCH] = self._safe(follows=Need.RECOVERY_PREFIX in needs)
        if Need.CONTRAST_BATCH in needs:
            sources[Need.CONTRAST_BATCH] = self._contrast()
        if Need.HARMLESS_BATCH in needs:
            sources[Need.HARMLESS_BATCH] = self._harmless()
        return sources

    def _safe(self, *, follows: bool) -> DatasetSource[Any, Any]:
        """Return refusals, half of them after the beginning of an unsafe answer if ``follows``."""

        def recovery(row: TokenRow, index: int, draw: int) -> TokenRow:
            return recovery_row(
                row,
                encode_begun(self.tokenizer, self._template, sides(self._pairs[index])[1]),
                seed=self.seed,
                index=index,
                draw=draw,
                max_tokens=self.max_tokens,
            )

        return self._source(
            [self._encoded(sides(pair)[0]) for pair in self._pairs],
            lambda part: collate_tokens(part, self._pad_token_id),
            vary=recovery if follows else None,
        )

    def _contrast(self) -> DatasetSource[Any, Any]:
        rows = [
            (self._encoded(safe), self._encoded(unsafe)) for safe, unsafe in map(sides, self._pairs)
        ]
        require_told_apart(
            self._pairs,
            ((safe.ids, unsafe.ids) for safe, unsafe in rows),
            lambda row: self._encoded(row, whole=True).ids,
            where=self.data.safety.where,
            max_tokens=self.max_tokens,
            key=self.cut_by,
        )
        return self._source(
            rows,
            lambda part: collate_pairs(
                [safe for safe, _ in part], [unsafe for _, unsafe in part], self._pad_token_id
            ),
        )

    def _harmless(self) -> DatasetSource[Any, Any]:
        return self._source(
            [self._encoded(row) for row in self.data.harmless_training_rows],
            lambda part: collate_tokens(part, self._pad_token_id),
        )

    def _source(
        self, rows: Sequence[Any], collate: Callable[[Sequence[Any]], Any], **settings: Any
    ) -> DatasetSource[Any, Any]:
        return DatasetSource(
            rows,
            collate,
            batch_size=self.batch_size,
            seed=self.seed,
            ranks=self.ranks,
            **settings,
        )

    @cached_property
    def _pairs(self) -> Sequence[SafePair]:
        return self.data.safety.preferences.roles["defence"]

    @property
    def _template(self) -> Template:
        return Template(self.data.settings.template)

    @property
    def _pad_token_id(self) -> int:
        return padding_id(self.tokenizer)

    def _encoded(self, row: Answered, *, whole: bool = False) -> TokenRow:
        max_tokens = None if whole else self.max_tokens
        return encode_answered(
            self.tokenizer, self._template, row, mask="response", max_tokens=max_tokens
        )
