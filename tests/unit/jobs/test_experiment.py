from rpa_ray.jobs.experiment import samples_consumed


def test_samples_count_up_to_the_last_step_that_was_done() -> None:
    assert samples_consumed([{"step": 0, "samples": 8}, {"step": 1, "samples": 16}]) == 16


def test_without_a_step_no_sample_is_consumed() -> None:
    assert samples_consumed([]) == 0
