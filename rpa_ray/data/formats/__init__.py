"""The data sets of pairs, one file each: their columns, where they are, and what is a pair.

What stays outside: how rows are read and checked (``data.load``), and who gets which pair.
"""

from collections.abc import Mapping

from rpa_ray.data.formats.beavertails import BEAVERTAILS
from rpa_ray.data.formats.preferences import PREFERENCES
from rpa_ray.data.formats.safe_rlhf import SAFE_RLHF
from rpa_ray.data.formats.tldr import TLDR
from rpa_ray.data.schema import Format, Kind, Schema, columns

FORMATS: Mapping[str, Format] = {
    "beavertails": BEAVERTAILS,
    "safe_rlhf": SAFE_RLHF,
    "preferences": PREFERENCES,
    "tldr": TLDR,
}
"""By ``data.name``."""

SAFETY = "beavertails"
"""The set that safety is measured and defended with where the pairs are of a harmless task."""

SCHEMAS: Mapping[str, Schema] = {
    **FORMATS,
    "helpful": Schema(
        columns=columns(Kind.LABEL, "prompt", required=False)
        + columns(Kind.DIALOGUE, "chosen", "rejected"),
        hub_id="Anthropic/hh-rlhf",
        hub_folder="helpful-base",
    ),
}
"""What rows can be read as: the formats, and helpfulness dialogues."""
