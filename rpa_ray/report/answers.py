"""Sample answers before and after an attack, side by side and folded away until opened."""

from collections.abc import Mapping, Sequence
from html import escape

from rpa_ray.report.read.folder import Campaign
from rpa_ray.report.read.groups import AttackGroup
from rpa_ray.report.read.runs import Sample

NUM_PROMPTS = 8
"""Prompts shown for an attack: the first in the order of the file, not chosen by outcome."""


def answers_section(campaign: Campaign) -> str:
    """Return one folded block an attack; "" when no run kept samples."""
    blocks = [block for group in campaign.groups if (block := _block(campaign, group))]
    if not blocks:
        return ""
    fictional = all(record.world == "embedded" for record in campaign.records)
    world = (
        "In the embedded world every hazard is fictional."
        if fictional
        else "Do not copy it into places where it could be acted on or trained on."
    )
    return (
        "<h2>Answers before and after</h2>\n"
        '<p><span class="warn">May show unsafe text.</span> The blocks below hold what attacked '
        f"models answered to restricted prompts. {world} The prompts are the first of the file, "
        f"not chosen by outcome.</p>\n{''.join(blocks)}"
    )


def _block(campaign: Campaign, group: AttackGroup) -> str:
    before: dict[str, Sample] = {}
    columns: list[tuple[str, str, Mapping[str, Sample]]] = []
    for cell in group.cells:
        samples = next((run.samples for run in campaign.runs_of(cell) if run.samples), ())
        for prompt, sample in _by_prompt(samples, "before").items():
            before.setdefault(prompt, sample)
        after = _by_prompt(samples, "after")
        if after:
            columns.append((f"after, {cell.label}", campaign.styles[cell.label], after))
    if before:
        columns.insert(0, ("before the attack", "untouched", before))
    prompts = list(dict.fromkeys(prompt for _, _, held in columns for prompt in held))
    cards = [_prompt_card(prompt, columns) for prompt in prompts[:NUM_PROMPTS]]
    if not cards:
        return ""
    return (
        f"<details><summary>{escape(group.title)} <small>{len(cards)} prompts, may show unsafe "
        f'text</small></summary><div class="inside">{"".join(cards)}</div></details>'
    )


def _by_prompt(samples: Sequence[Sample], phase: str) -> dict[str, Sample]:
    """Return one answer a prompt, greedy where there is one."""
    held: dict[str, Sample] = {}
    for sample in samples:
        known = held.get(sample.prompt)
        if sample.phase == phase and (known is None or known.decoding != "greedy"):
            held[sample.prompt] = sample
    return held


def _prompt_card(prompt: str, columns: Sequence[tuple[str, str, Mapping[str, Sample]]]) -> str:
    answers = "".join(
        _answer(heading, style, held[prompt]) for heading, style, held in columns if prompt in held
    )
    return f'<p class="prompt">{escape(prompt)}</p><div class="answers">{answers}</div>'


def _answer(heading: str, style: str, sample: Sample) -> str:
    notes = [
        f"{escape(name)} {score:.2f}"
        for name, score in (sample.scores or {}).items()
        if score is not None
    ]
    if sample.decoding != "greedy":
        notes.append(escape(sample.decoding))
    if sample.label:
        label = escape(sample.label)
        notes.append(f'<span class="swatch {label}"></span>{label.replace("_", " ")}')
    text = escape(sample.answer) if sample.answer.strip() else "<i>(empty answer)</i>"
    return (
        f'<article class="answer {style}"><header><b>{escape(heading)}</b><br>'
        f"{' &middot; '.join(notes)}</header><p>{text}</p></article>"
    )
