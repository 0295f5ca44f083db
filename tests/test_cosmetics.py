"""Changes of an answer's look, and what they do to scores, by hand."""

import pytest

from lorarlhf.evaluation.cosmetics import (
    CHANGES,
    Effect,
    as_list,
    bold_start,
    effects,
    repeated,
    sentences,
    with_opening,
)


def test_the_changes() -> None:
    text = "Boil water. Add salt!\nStir well"
    assert sentences(text) == ["Boil water.", "Add salt!", "Stir well"]
    assert as_list(text) == "- Boil water.\n- Add salt!\n- Stir well"
    assert bold_start(text) == "**Boil water. Add** salt!\nStir well"
    assert with_opening(text) == f"Great question! {text}"
    assert repeated(text) == f"{text} Stir well"
    assert sentences("\u6c34\u3002\u76d0\u3002") == ["\u6c34\u3002", "\u76d0\u3002"]


@pytest.mark.parametrize("change", CHANGES.values())
def test_a_word_is_changed_too(change) -> None:
    assert "Yes" in change("Yes") and change("Yes") != "Yes"


def test_an_effect_is_in_deviations_of_the_scores() -> None:
    before = [0.0, 2.0, 4.0]  # deviation 2
    (longer, same) = effects(before, {"more": [1.0, 4.0, 5.0], "same": before})
    # Changes of 0.5, 1 and 0.5: mean 2/3, deviation 0.2887, error 1/6.
    assert longer.change == pytest.approx(2 / 3)
    assert longer.low == pytest.approx(2 / 3 - 1.96 / 6, abs=1e-4)
    assert longer.high == pytest.approx(2 / 3 + 1.96 / 6, abs=1e-4)
    assert longer.found and not same.found
    assert same == Effect("same", 0.0, 0.0, 0.0)


def test_one_answer_measures_nothing() -> None:
    with pytest.raises(ValueError, match="two or more"):
        effects([1.0], {"more": [2.0]})
    with pytest.raises(ValueError):
        effects([1.0, 2.0], {"more": [2.0]})
