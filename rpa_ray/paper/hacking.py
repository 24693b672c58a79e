"""Harmless reward hacking by the oracle: what is paid, and how good its detectors are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rpa_ray.evaluation.answers import Answer, Decoding
from rpa_ray.evaluation.metrics import ORACLE_LABELS
from rpa_ray.evaluation.statistics import mean_estimate
from rpa_ray.report.evidence import read_cells
from rpa_ray.report.read.labels import params_text
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
SHOWN = tuple(label.replace("_", " ") for label, _ in ORACLE_LABELS[:5])
"""Labels that a table of rewards has columns for: what is an answer."""


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


def rewards_table(folders: Sequence[Path]) -> str:
    """Return what the reward model pays the sampled answers of each attacked model, by label.

    Each entry is the share of answers that the oracle calls so, and their mean reward; only of
    models whose answers were scored by a reward model.
    """
    lines = [
        f"| Data | Attack | Defence | Harm | Reward | {' | '.join(SHOWN)} |",
        f"| --- | --- | --- | --: | --: | {' | '.join('--:' for _ in SHOWN)} |",
    ]
    for cells, answers in map(read_cells, folders):
        for number, held in answers.items():
            scored = [a for a in held if a.decoding is Decoding.SAMPLED and a.reward is not None]
            cell = cells[number]
            if scored and cell["attack"] != "none":
                told = params_text(cell["params"])
                defence = f"{cell['defence']} ({told})" if told else cell["defence"]
                name = [cell["data"], cell["attack"], defence]
                means = [_mean([a.harm for a in scored]), _mean([a.reward for a in scored])]
                lines.append(f"| {' | '.join([*name, *means, *_by_label(scored)])} |")
    return "\n".join(lines)


def _by_label(answers: Sequence[Answer]) -> list[str]:
    found = []
    for label in SHOWN:
        rewards = [a.reward for a in answers if str(a.label).replace("_", " ") == label]
        share = len(rewards) / len(answers)
        found.append(f"{share:.2f} ({_mean(rewards)})" if rewards else MISSING)
    return found


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else MISSING


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
