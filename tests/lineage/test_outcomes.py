from __future__ import annotations

import pytest

from lineage.outcomes import Setting, split_trace_id, trace_id_of
from tests.lineage.outcomes import RUN


def test_a_trace_id_is_the_run_and_the_number_of_the_request() -> None:
    trace_id = trace_id_of(RUN, 0xBEEF)
    assert trace_id == RUN + "00000000beef"
    assert split_trace_id(trace_id) == (RUN, 0xBEEF)


@pytest.mark.parametrize("text", ["", "x" * 32, "0" * 31, "0" * 33, "ABCDEF" + "0" * 26, "0" * 32 + "\n"])
def test_other_text_is_no_trace_id(text: str) -> None:
    with pytest.raises(ValueError, match="not a trace id"):
        split_trace_id(text)


def test_the_propensity_is_that_of_the_plan_which_was_chosen_not_of_the_one_that_stood_in() -> None:
    considered = (("a", 0.75), ("b", 0.25))
    assert Setting("m", plan="b", considered=considered).propensity == 0.25
    assert Setting("m", plan="a", considered=considered, chosen="b").propensity == 0.25
    assert Setting("m", plan="other", considered=considered).propensity is None
    assert Setting("m", plan="a").propensity == 1.0


@pytest.mark.parametrize("propensity", [-0.1, 1.1, float("nan")])
def test_a_propensity_is_a_probability(propensity: float) -> None:
    with pytest.raises(ValueError, match="probability"):
        Setting("m", considered=(("a", propensity),))
