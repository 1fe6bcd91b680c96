import pytest

from afa_lora.core.errors import InvalidSettingError
from afa_lora.core.placement import PLACEMENTS, normalise_placement
from tests import reference


def test_the_papers_seven_in_table_order():
    assert list(PLACEMENTS) == reference.PLACEMENTS


@pytest.mark.parametrize("name", PLACEMENTS)
def test_flags_say_what_the_string_says(name):
    before, between, after = PLACEMENTS[name]
    assert before == name.startswith("σ")
    assert after == name.endswith("σ")
    assert between == ("A-σ-B" in name)
    assert normalise_placement(name.replace("σ", "s")) == name


@pytest.mark.parametrize("wrong", ["A-B", "B-σ-A", "a-σ-b", "σ", "", 3])
def test_anything_else_is_refused_with_the_seven(wrong):
    with pytest.raises(InvalidSettingError, match=r"placement=.* is not known. Choose one of 'σ-A-B', 'A-σ-B'"):
        normalise_placement(wrong)
