import re
from itertools import pairwise

from rpa_ray.report.figures.bands import BandLine, band_chart
from rpa_ray.report.figures.plots import Axis
from rpa_ray.report.read.values import CellValue

NAN = float("nan")


def value(mean: float, low: float = NAN, high: float = NAN) -> CellValue:
    return CellValue(mean=mean, low=low, high=high, by_seed=())


def chart(*points: tuple[float, CellValue], axis: Axis) -> str:
    line = BandLine(label="a", style="colour0", points=points)
    return band_chart([line], title="harm", x_label="N", x_axis=axis)


def test_doublings_of_n_are_equally_far_apart() -> None:
    points = [(float(n), value(0.5)) for n in (1, 2, 4, 8)]
    page = chart(*points, axis=Axis(low=1, high=8, scale="log2"))
    xs = [float(x) for x in re.findall(r'class="end colour0" cx="([\d.]+)"', page)]
    steps = [round(b - a, 0) for a, b in pairwise(xs)]
    assert len(xs) == 4 and len(set(steps)) == 1


def test_a_log2_axis_has_powers_of_two_inside_it() -> None:
    assert Axis(low=3, high=20, scale="log2").ticks() == [4, 8, 16]


def test_the_band_runs_along_the_upper_ends_and_back_along_the_lower() -> None:
    # From pixel 12 (harm 1) to 184 (harm 0), and from 44 (x 0) to 348 (x 1).
    page = chart((0.0, value(0.5, 0.0, 1.0)), (1.0, value(0.5, 0.5, 1.0)), axis=Axis(low=0, high=1))
    assert 'points="44.0,12.0 348.0,12.0 348.0,98.0 44.0,184.0"' in page


def test_an_unknown_interval_draws_a_point_without_a_band() -> None:
    page = chart((0.5, value(0.5)), axis=Axis(low=0, high=1))
    assert "polygon" not in page and 'class="end colour0"' in page


def test_lines_without_points_are_no_chart() -> None:
    assert chart(axis=Axis(low=0, high=1)) == ""
