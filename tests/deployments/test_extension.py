"""Writing an extension is pleasant: it works as written, and each mistake is answered with a sentence that helps."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.extension import Extension, Result, Scored, execute, extension
from planner.errors import BadCard, BadInput, ExtensionBroken, ExtensionRaised, StepFailed
from planner.features import DATATYPES, Array, Feature, Port, Rows, check_rows
from tests.deployments.extensions import ReadBlob, Vote, centre, scale, shout

rng = np.random.default_rng(0)
NUMBER = Feature("number", "FP32")


def returning(result: Any, **attributes: Any) -> Extension:
    """An extension with one FP32 input `x` and one output `y` that returns `result`, or calls it with `x`."""

    def answer(x: Array) -> Any:
        return result(x) if callable(result) else result

    given_outputs = attributes.pop("outputs", {"y": NUMBER})
    return extension(inputs={"x": NUMBER}, outputs=given_outputs, **attributes)(answer)()


def run(ext: Extension, n_rows: int = 3) -> dict[str, Rows]:
    return execute(ext, {"x": np.arange(n_rows, dtype=np.float32)})


class TestCards:
    def test_a_function_describes_itself(self) -> None:
        card = scale().card()
        assert card.id == "scale@1"
        assert card.description == "Scales grey values to [0, 1]."
        assert card.source == "tests.deployments.extensions:scale"
        assert card.inputs == (Port("image", Feature("image/raw", "FP32", (4, 4))),)

    def test_a_class_describes_itself_with_its_options(self) -> None:
        card = ReadBlob(sharpness=2.0).card()
        assert (card.name, card.source) == ("read-blob", "tests.deployments.extensions:ReadBlob")
        assert card.options == {"sharpness": 2.0}
        assert card.examples == ("which corner is bright",)

    def test_options_may_be_given_by_position(self) -> None:
        assert ReadBlob(2.0).card() == ReadBlob(sharpness=2.0).card()

    def test_a_subclass_does_not_take_its_parents_name_and_description(self) -> None:
        class ReadHTTPBlob(ReadBlob):
            pass

        assert (ReadHTTPBlob().name, ReadHTTPBlob().card().description) == ("read-http-blob", "")

    def test_attributes_of_the_decorator_reach_the_card(self) -> None:
        card = returning(0.0, name="zero", version="7", cost=2.0, may_see=frozenset({"pii"}), cache="user").card()
        assert (card.id, card.cost, card.may_see, card.cache) == ("zero@7", 2.0, frozenset({"pii"}), "user")

    def test_a_combiner_keeps_its_port(self) -> None:
        assert Vote().card().inputs[0].many == 4


class TestMistakesInTheCard:
    @pytest.mark.parametrize(
        ("body", "said", "hint"),
        [
            ({"outputs": {"y": NUMBER}}, "declares no `inputs`", "Write for example: inputs ="),
            ({"inputs": {"x": NUMBER}}, "declares no `outputs`", "outputs ="),
            ({"inputs": {}, "outputs": {"y": NUMBER}}, "declares no `inputs`", ""),
            ({"inputs": [NUMBER], "outputs": {"y": NUMBER}}, "inputs is a list", ""),
            ({"inputs": {"x": "FP32"}, "outputs": {"y": NUMBER}}, "inputs['x'] is a str, not a Feature", ""),
            ({"inputs": {"x": Port("z", NUMBER)}, "outputs": {"y": NUMBER}}, "another name, 'z'", ""),
            ({"inputs": {"x": NUMBER}, "outputs": {"y": Port("y", NUMBER, many=3)}}, "only an input", ""),
            (
                {"inputs": {"xs": NUMBER}, "outputs": {"y": NUMBER}},
                "an input port 'xs', but the function takes (x)",
                "x",
            ),
            ({"inputs": {"x": NUMBER, "name": NUMBER}, "outputs": {"y": NUMBER}}, "input port 'name'", ""),
        ],
    )
    def test_ports_that_are_missing_or_wrong_are_explained(self, body: Any, said: str, hint: str) -> None:
        made = type("Wrong", (Extension,), {**body, "infer": lambda self, x: x})
        with pytest.raises(BadCard) as caught:
            made().card()
        assert said in caught.value.message
        assert hint in caught.value.hint

    def test_a_parameter_that_no_port_feeds_is_found_where_the_function_is_decorated(self) -> None:
        with pytest.raises(BadCard, match=r"takes 'other', but the input ports are x"):
            extension(inputs={"x": NUMBER}, outputs={"y": NUMBER})(lambda x, other: x)

    def test_a_misspelt_attribute_of_the_decorator_is_found(self) -> None:
        with pytest.raises(BadCard) as caught:
            extension(inputs={"x": NUMBER}, outputs={"y": NUMBER}, costs=2.0)(lambda x: x)
        assert "Nearest: cost" in caught.value.hint

    def test_a_misspelt_option_is_found(self) -> None:
        with pytest.raises(BadCard, match="no option 'bye'"):
            scale(bye=2.0)
        with pytest.raises(TypeError, match="sharpnes"):
            ReadBlob(sharpnes=2.0)  # type: ignore[call-arg]

    def test_options_that_json_cannot_hold_are_refused(self) -> None:
        with pytest.raises(BadCard, match="JSON"):
            scale(by=np.float32(2)).card()


class TestRunning:
    def test_options_reach_the_function(self) -> None:
        image = np.full((1, 4, 4), 8, np.float32)
        assert execute(scale(by=2.0), {"image": image})["image"].values.max() == 4.0
        assert scale.function(image, by=4.0).max() == 2.0

    def test_a_confidence_comes_with_every_output(self) -> None:
        made = returning(lambda x: Scored({"a": x, "b": x}, x / 4), outputs={"a": NUMBER, "b": NUMBER})
        rows = run(made)
        assert rows["a"].confidence is not None
        assert rows["a"].confidence.tolist() == [0.0, 0.25, 0.5]
        assert rows["b"].confidence is rows["a"].confidence

    def test_texts_become_bytes(self) -> None:
        made = returning(lambda x: np.array(["a", "é", "c"]), outputs={"y": Feature("t", "BYTES")})
        assert run(made)["y"].values.tolist() == [b"a", "é".encode(), b"c"]

    @pytest.mark.parametrize(
        ("dtype", "datatype"),
        [(np.float64, "FP32"), (np.float16, "FP64"), (np.int64, "UINT8"), (np.uint8, "INT64"), (np.int32, "INT32")],
    )
    def test_a_width_that_differs_is_cast(self, dtype: Any, datatype: str) -> None:
        rows = run(returning(lambda x: x.astype(dtype), outputs={"y": Feature("n", datatype)}))
        assert rows["y"].values.dtype == DATATYPES[datatype]
        assert rows["y"].values.tolist() == [0, 1, 2]

    def test_a_combiner_takes_from_two_sources_to_its_most(self) -> None:
        assert execute(Vote(), {"scores": np.ones((5, 4, 3))})["scores"].values.shape == (5, 3)
        for n_sources in (1, 5):
            with pytest.raises(BadInput, match=f"2 to 4 sources, not {n_sources}"):
                execute(Vote(), {"scores": np.ones((5, n_sources, 3))})

    @pytest.mark.parametrize(
        ("rows", "said"),
        [
            ({}, "'image' is missing"),
            ({"imge": np.ones((1, 4, 4), np.float32)}, "'image' is missing"),
            ({"image": np.ones((1, 4, 4), np.float32), "more": np.ones(1)}, "no input 'more'"),
            ({"image": np.ones((1, 4, 4))}, "datatype FP64"),
            ({"image": np.ones((1, 4, 5), np.float32)}, "shape [1, 4, 5]"),
            ({"image": np.ones((0, 4, 4), np.float32)}, "no rows"),
            ({"image": [[1.0]]}, "a list, not an array"),
        ],
    )
    def test_input_that_does_not_fit_is_refused(self, rows: Any, said: str) -> None:
        with pytest.raises(BadInput) as caught:
            execute(scale(), rows)
        assert said in caught.value.message

    def test_the_extension_cannot_write_to_what_it_gets_and_the_caller_still_can(self) -> None:
        def write(x: Array) -> Array:
            x[0] = 7
            return x

        mine = np.ones(2, np.float32)
        with pytest.raises(ExtensionRaised, match="ValueError: assignment destination is read-only"):
            execute(returning(write), {"x": mine})
        mine[0] = 5
        assert mine.tolist() == [5, 1]


class TestBrokenExtensions:
    @pytest.mark.parametrize(
        ("result", "said", "hint"),
        [
            (None, "nothing (None), not a numpy array", "end with a return"),
            ([1.0, 2.0, 3.0], "is a list, not a numpy array", "np.asarray"),
            (np.float32(1), "is a float32, not a numpy array", ""),
            (np.array(1.0), "a single value for 3 rows", "one row per input row"),
            (np.ones(2), "2 rows for 3 rows", "one row per input row"),
            (np.ones((3, 2)), "rows of shape [2], but the card says []", "Reshape"),
            (np.ones(3, dtype=np.int64), "dtype int64, but the card says FP32", "float32"),
            (np.ones(3, dtype=bool), "dtype bool", ""),
            (np.ones(3, dtype=complex), "dtype complex128", ""),
            (np.array(["a", "b", "c"]), "dtype <U1", ""),
            ({"z": np.ones(3)}, "returned no 'y', only 'z'", ""),
            ({}, "returned no 'y', only nothing", ""),
            ({"y": np.ones(3), "yy": np.ones(3)}, "returned 'yy', which is not an output", "y"),
            (Scored(np.ones(3), np.ones(2)), "the confidence has shape [2], not [3]", ""),
            (Scored(np.ones(3), np.full(3, 1.5)), "lies in [0, 1]", ""),
            (Scored(np.ones(3), np.full(3, np.nan)), "lies in [0, 1]", ""),
            (Scored(np.ones(3), [1, 1, 1]), "the confidence is a list", ""),  # type: ignore[arg-type]
        ],
    )
    def test_what_does_not_fit_is_explained(self, result: Any, said: str, hint: str) -> None:
        with pytest.raises(ExtensionBroken) as caught:
            run(returning(result))
        assert said in caught.value.message
        assert hint in caught.value.hint

    def test_several_outputs_need_a_dict(self) -> None:
        with pytest.raises(ExtensionBroken) as caught:
            run(returning(np.ones(3), outputs={"a": NUMBER, "b": NUMBER}))
        assert "a dict with the keys a, b" in caught.value.hint

    def test_a_number_too_large_for_its_datatype_is_not_wrapped(self) -> None:
        with pytest.raises(ExtensionBroken, match="from -1 to 300, which UINT8 cannot hold"):
            run(returning(np.array([-1, 0, 300]), outputs={"y": Feature("n", "UINT8")}))

    def test_bytes_hold_bytes(self) -> None:
        with pytest.raises(ExtensionBroken, match="holds a int"):
            run(returning(np.array([1, b"a", "c"], dtype=object), outputs={"y": Feature("t", "BYTES")}))

    @pytest.mark.parametrize("error", [ValueError("no digit"), KeyError("x"), SystemExit(3)])
    def test_what_the_code_raises_comes_with_type_and_message_and_crosses_processes(self, error: BaseException) -> None:
        def fail(x: Array) -> Array:
            raise error

        with pytest.raises(ExtensionRaised) as caught:
            run(returning(fail, name="fails"))
        assert caught.value.message.startswith(f"fails@1 raised {type(error).__name__}: ")
        assert "Traceback" not in pickle.loads(pickle.dumps(caught.value)).message

    def test_errors_of_ours_pass_as_they_are(self) -> None:
        def refuse(x: Array) -> Array:
            raise BadInput("x is negative")

        with pytest.raises(BadInput, match="x is negative"):
            run(returning(refuse))


features = st.builds(
    Feature,
    type=st.just("any"),
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(1, 4) | st.just(-1), max_size=3).map(tuple),
)


@given(st.dictionaries(st.sampled_from("abc"), features, min_size=1), st.integers(1, 5), st.integers(0, 2**32))
def test_samples_of_any_ports_fit_and_come_through_an_extension_that_changes_nothing(
    ports: dict[str, Feature], n_rows: int, seed: int
) -> None:
    made = extension(inputs=ports, outputs=ports, name="through")(lambda **inputs: inputs)()
    samples = made.samples(n_rows, np.random.default_rng(seed))
    rows = execute(made, samples)
    for name, feature in ports.items():
        check_rows(name, rows[name].values, feature, n_rows)
        assert np.array_equal(rows[name].values, samples[name])


@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.lists(st.floats()),
        st.builds(np.zeros, st.lists(st.integers(0, 3), max_size=2).map(tuple), st.sampled_from("bBhIeqfdO?")),
        st.dictionaries(
            st.sampled_from("xyz"), st.builds(np.zeros, st.integers(0, 3), st.sampled_from("fdi")), max_size=2
        ),
        st.builds(Scored, st.builds(np.zeros, st.just(2)), st.builds(np.zeros, st.integers(0, 3))),
    )
)
def test_whatever_is_returned_either_fits_the_card_or_is_a_failed_step(result: Any) -> None:
    made = returning(result)
    try:
        rows = run(made, n_rows=2)
    except StepFailed:
        return
    check_rows("y", rows["y"].values, NUMBER, 2)


def test_extensions_of_the_test_support_run_on_their_samples() -> None:
    for made in (shout(), centre()):
        assert len(next(iter(execute(made, made.samples(3, rng)).values()))) == 3


def test_a_result_type_reads_well_in_a_signature() -> None:
    class Twice(Extension):
        inputs = {"x": NUMBER}
        outputs = {"y": NUMBER}

        def infer(self, x: Array) -> Result:
            return x * 2

    assert run(Twice())["y"].values.tolist() == [0, 2, 4]
