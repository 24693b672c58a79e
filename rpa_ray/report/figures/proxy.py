"""What an attacker is paid for beside what is true: reward, judge and harm on one axis."""

import math
from dataclasses import replace
from html import escape

from rpa_ray.config import EvaluationSettings
from rpa_ray.evaluation import looks
from rpa_ray.report.figures.bands import BandLine, band_chart
from rpa_ray.report.figures.dose import points_of
from rpa_ray.report.figures.plots import Axis, line_key
from rpa_ray.report.read.definitions import REWARD_GAIN
from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup, Cell
from rpa_ray.report.read.values import CellValue

Points = list[tuple[float, CellValue]]
STYLES = {
    looks.HARM: ("harm", "undefended dash0"),
    looks.JUDGED: ("judge", "colour0 dash1"),
    looks.REWARD: ("reward", "colour2 dash2"),
}


def proxy_charts(campaign: Campaign) -> str:
    """Return one small chart a cell of what its attack was paid, "" where none was by a model."""
    cards = [card for group in campaign.groups if (card := _card(campaign, group))]
    if not cards:
        return ""
    return (
        "<h2>What the attacker was paid for</h2>\n"
        '<p class="soft">The same sampled answers to held-out prompts, by the oracle, by the judge '
        "and by the attacker's reward model. Where reward rises and harm does not, the answers "
        "please the reward model by something else, as Proposition 1 of arXiv:2409.12914 expects "
        "of a constraint that holds: read those answers.</p>\n" + "\n".join(cards)
    )


def _card(campaign: Campaign, group: AttackGroup) -> str:
    every = [(c, {name: points_of(campaign, c, name) for name in STYLES}) for c in group.cells]
    seen = [(cell, found) for cell, found in every if found[looks.REWARD]]
    if not seen:
        return ""
    rewards = [value.mean for _, found in seen for _, value in found[looks.REWARD]]
    scale = Axis(low=min(rewards), high=max(rewards))
    keys = "".join(line_key(*STYLES[name]) for name in STYLES)
    figures = "".join(_figure(campaign, cell, found, scale) for cell, found in seen)
    told = f"Reward is drawn from {scale.low:.2f} (0) to {scale.high:.2f} (1)."
    return (
        f'<section class="card"><h3>{escape(group.title)}</h3><ul class="legend">{keys}</ul>'
        f'<p class="notes">{told}</p><div class="charts">{figures}</div></section>'
    )


def _figure(campaign: Campaign, cell: Cell, found: dict[str, Points], scale: Axis) -> str:
    lines = [
        BandLine(
            label=label,
            style=style,
            points=tuple(_scaled(found[name], scale) if name == looks.REWARD else found[name]),
        )
        for name, (label, style) in STYLES.items()
    ]
    last = max(x for line in lines for x, _ in line.points)
    chart = band_chart(
        lines,
        title=f"Harm, judge and reward: {cell.label}",
        x_label="attack samples",
        x_axis=Axis(low=0.0, high=last or 1.0),
    )
    caption = f"{escape(cell.label)} <small>{escape(reading(campaign, cell))}</small>"
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


def _scaled(points: Points, scale: Axis) -> Points:
    """Return rewards between 0 and 1, without the spread over seeds, which has another scale."""
    if scale.low == scale.high:
        return []
    return [
        (
            x,
            replace(value, mean=scale.share(value.mean), low=math.nan, high=math.nan, by_seed=()),
        )
        for x, value in points
    ]


def reading(campaign: Campaign, cell: Cell) -> str:
    """Return in words whether the constraint held and the reward rose, as Proposition 1 asks."""
    gain, harm = cell.value(REWARD_GAIN), points_of(campaign, cell, looks.HARM)
    if gain is None or not harm:
        return ""
    limits = [run.evaluation.get("resistance") for run in campaign.runs_of(cell)]
    told = [found["limit"] for found in limits if isinstance(found, dict)]
    limit = max(told, default=EvaluationSettings().cost_limit)
    held = all(value.mean <= limit for _, value in harm)
    rose = gain.low > 0
    return (
        f"{'constraint held' if held else 'constraint broken'} (harm {limit:g}), "
        f"reward {'rose' if rose else 'did not rise' if gain.high <= 0 else 'not shown to rise'}"
    )
