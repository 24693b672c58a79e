import pytest

from rpa_ray.report.figures.plots import Axis, Series, binned_mean, fit_axis, line_chart, nice_ticks


def test_ticks_are_round_and_inside_the_axis() -> None:
    assert nice_ticks(0.0, 1000.0) == [0, 200, 400, 600, 800, 1000]
    assert nice_ticks(-3.3, 4.1) == [-2, 0, 2, 4]


def test_bins_average_over_seeds() -> None:
    first, second = ((1.0, 0.0), (9.0, 4.0)), ((1.0, 2.0), (9.0, 8.0))
    assert binned_mean([first, second], high=10.0, num_bins=2) == ((1.0, 1.0), (9.0, 6.0))


def test_the_last_point_stays_in_the_last_bin() -> None:
    assert binned_mean([((8.0, 1.0), (10.0, 3.0))], high=10.0, num_bins=2) == ((9.0, 2.0),)


def test_an_axis_is_compressed_only_when_few_values_dwarf_the_rest() -> None:
    assert fit_axis([0.0, 1.0, 8.0]).scale == "linear"
    assert fit_axis([0.1, 0.2, 2000.0]).scale == "compressed"


def test_a_compressed_axis_has_powers_of_ten() -> None:
    assert Axis(low=0.0, high=300.0, scale="compressed").ticks() == [0, 1, 10, 100]


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-2.0, -2.0]])
def test_equal_values_still_have_an_axis(values: list[float]) -> None:
    axis = fit_axis(values)
    assert 0.0 <= axis.share(values[0]) <= 1.0
    assert axis.ticks()


def test_a_chart_without_points_is_left_out() -> None:
    empty = Series(label="lisa", style="colour0", curves=((),), failed=(True,))
    assert line_chart([empty], title="KL", x_label="samples", y_range=None) == ""


def test_only_a_failed_run_ends_in_a_cross() -> None:
    curve = ((8.0, 0.1), (16.0, 0.4))
    ended = Series(label="a", style="colour0", curves=(curve,), failed=(False,))
    failed = Series(label="b", style="colour1", curves=(curve,), failed=(True,))
    chart = line_chart([ended, failed], title="KL", x_label="samples", y_range=(0.0, 1.0))
    assert chart.count('class="end colour0"') == 1
    assert chart.count('class="cross colour1"') == 1
    assert 'class="cross colour0"' not in chart and 'class="end colour1"' not in chart
