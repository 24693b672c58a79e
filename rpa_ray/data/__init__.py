"""Data sets: load, check, pair, flip, split, and lay out as text; importing this loads no torch.

Token rows and batches are in ``rpa_ray.data.collate``, which does.
"""

from rpa_ray.data.context import check_context, context_tokens, prompt_lengths
from rpa_ray.data.errors import DataError
from rpa_ray.data.flip import flip, reverse, sft_targets
from rpa_ray.data.judge_rows import judge_rows
from rpa_ray.data.load import load_rows
from rpa_ray.data.pairs import (
    harmless_prompts,
    helpful_pairs,
    restricted_prompts,
    safe_pairs,
    unsafe_prompts,
)
from rpa_ray.data.rows import Answered, Labelled, Preference, SafePair
from rpa_ray.data.schema import SCHEMAS, Row
from rpa_ray.data.split import ROLES, RoleManifest, by_role, draw, manifest, normalise, role_of
from rpa_ray.data.template import PLAIN_QA, PLAIN_QA_ANSWERED, Template

__all__ = [
    "PLAIN_QA",
    "PLAIN_QA_ANSWERED",
    "ROLES",
    "SCHEMAS",
    "Answered",
    "DataError",
    "Labelled",
    "Preference",
    "RoleManifest",
    "Row",
    "SafePair",
    "Template",
    "by_role",
    "check_context",
    "context_tokens",
    "draw",
    "flip",
    "harmless_prompts",
    "helpful_pairs",
    "judge_rows",
    "load_rows",
    "manifest",
    "normalise",
    "prompt_lengths",
    "restricted_prompts",
    "reverse",
    "role_of",
    "safe_pairs",
    "sft_targets",
    "unsafe_prompts",
]
