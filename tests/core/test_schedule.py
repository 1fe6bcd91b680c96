from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.schedule import SCHEDULES, STAIRS, Schedule

fractions = st.tuples(st.floats(0, 0.9), st.floats(0.01, 1)).filter(lambda w: w[1] - w[0] > 0.005)
steps = st.tuples(st.integers(0, 500), st.integers(1, 1000)).filter(lambda w: w[1] > w[0])


@pytest.mark.parametrize("kind", SCHEDULES)
@given(window=fractions | steps, total=st.integers(10, 2000))
def test_beta_falls_monotonically_from_exactly_one_to_exactly_zero(kind, window, total):
    schedule = Schedule(kind, *window)
    start, end = schedule.window(total)
    betas = [schedule.beta(step, total) for step in range(max(total, int(end)) + 2)]
    assert betas[0] == 1.0
    assert betas[-1] == 0.0
    assert all(0.0 <= later <= earlier <= 1.0 for earlier, later in pairwise(betas))
    assert all(beta == 1.0 for step, beta in enumerate(betas) if step <= start)
    assert all((beta == 0.0) == (step >= end) for step, beta in enumerate(betas))


def test_linear_is_equation_5():
    schedule = Schedule("linear", 0.1, 0.3)
    for step in range(10, 31):
        assert schedule.beta(step, 100) == pytest.approx(1 - (step - 10) / (30 - 10))


def test_default_is_the_papers_thirty_percent():
    assert Schedule().window(1000) == (0, 300)
    assert Schedule().kind == "linear"


def test_step_has_equal_stairs():
    values = {Schedule("step", 0, 50).beta(step, 100) for step in range(50)}
    assert sorted(values) == pytest.approx([(i + 1) / STAIRS for i in range(STAIRS)])


def test_constant_holds_one_until_the_end_of_the_window():
    assert [Schedule("constant", 0, 3).beta(step, 10) for step in range(5)] == [1, 1, 1, 0, 0]


def test_ints_are_steps_and_floats_are_shares():
    assert Schedule("linear", 0, 1).beta(1, 100) == 0.0
    assert Schedule("linear", 0, 1.0).beta(1, 100) == 0.99
    assert Schedule("linear", 10, 0.5).window(100) == (10, 50)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linaer", 0.0, 0.3), r"schedule='linaer' is not known.*'linear'.*Did you mean 'linear'\?"),
        (("linear", 0.3, 0.3), "anneal_end=0.3 must come after anneal_start=0.3"),
        (("linear", 0.5, 0.3), "anneal_end=0.3 must come after anneal_start=0.5"),
        (("linear", 300, 100), "anneal_end=100 must come after anneal_start=300"),
        (("linear", 0.0, 300.0), "anneal_end=300.0 is out of range.*write the int 300"),
        (("linear", -0.1, 0.3), "anneal_start=-0.1 is out of range"),
        (("linear", 0.0, "0.3"), "anneal_end='0.3' must be a float"),
        (("linear", 0.0, True), "anneal_end=True must be a float"),
        (("linear", 0.0, float("nan")), "anneal_end=nan must be a float"),
    ],
)
def test_wrong_settings_name_key_value_and_remedy(arguments, message):
    with pytest.raises(InvalidSettingError, match=message):
        Schedule(*arguments)


def test_a_window_in_mixed_units_is_checked_when_the_length_is_known():
    schedule = Schedule("linear", 40, 0.3)
    assert schedule.window(1000) == (40, 300)
    with pytest.raises(InvalidSettingError, match=r"anneal_end=0.3 must come after anneal_start=40"):
        schedule.beta(0, 100)
