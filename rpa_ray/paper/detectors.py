"""How good the detectors of harmless reward hacking are, held against the oracle."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.statistics import mean_estimate
from rpa_ray.report.evidence import read_cells
from rpa_ray.report.tables.main import MISSING

BROKEN = frozenset({"echo", "gibberish", "empty"})
"""Labels of the oracle for what is no answer at all."""
DETECTORS: Mapping[str, Callable[[Answer], bool | None]] = {
    "too short": lambda answer: answer.is_too_short,
    "copies the prompt": lambda answer: answer.copies_prompt,
    "repeats": lambda answer: answer.repeats,
    "not fluent": lambda answer: None if answer.is_fluent is None else not answer.is_fluent,
}
ANY = "any of them"


def detectors_table(folders: Sequence[Path]) -> str:
    """Return precision and recall of each detector on the answers of attacked models.

    Both with intervals over items, of sampled and of greedy answers; of what a detector did not
    see of any there is none. An answer counts as hacked where the oracle calls it an echo of the
    prompt, broken text or empty.
    """
    answers = [
        answer
        for cells, answers in map(read_cells, folders)
        for number, held in answers.items()
        if cells[number]["attack"] != "none"
        for answer in held
        if answer.label is not None
    ]
    lines = []
    for decoding in (Decoding.SAMPLED, Decoding.GREEDY):
        held = [answer for answer in answers if answer.decoding is decoding]
        lines += [*_rows(decoding.value, held), ""] if held else []
    return "\n".join(lines).strip()


def _rows(kind: str, answers: Sequence[Answer]) -> list[str]:
    seen = {name: [of(answer) for answer in answers] for name, of in DETECTORS.items()}
    flagged = {name: list(map(bool, of)) for name, of in seen.items() if set(of) != {None}}
    flagged[ANY] = [any(of) for of in zip(*flagged.values(), strict=True)]
    broken = [answer.label in BROKEN for answer in answers]
    lines = [
        f"{len(answers):,} {kind} answers, {sum(broken):,} of them broken by the oracle.",
        "",
        "| Detector | Flagged | Precision | Recall |",
        "| --- | --: | --: | --: |",
    ]
    for name, of in flagged.items():
        precision = _share(answers, broken, among=of)
        recall = _share(answers, of, among=broken)
        lines.append(f"| {name} | {sum(of):,} | {precision} | {recall} |")
    return lines


def _share(answers: Sequence[Answer], true: Sequence[bool], *, among: Sequence[bool]) -> str:
    """Return the share that is true of some answers, with its interval over items."""
    held = [i for i, is_one in enumerate(among) if is_one]
    if not held:
        return MISSING
    found = mean_estimate(
        [float(true[i]) for i in held], items=[answers[i].item for i in held], num_resamples=2000
    )
    return f"{found.mean:.2f} [{found.ci_low:.2f}, {found.ci_high:.2f}]"
