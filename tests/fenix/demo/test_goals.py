from __future__ import annotations

import pytest

from fenix.demo import digits, tables
from fenix.demo.goals import tasks
from planner.catalogue import Catalogue
from planner.errors import Unsure
from planner.intent import Analyser

SENTENCES = [
    ("read-digit", "Read the handwritten digit in this picture, please."),
    ("read-digit", "What number has been written here?"),
    ("read-digit", "Please recognise this digit accurately."),
    ("skim-digits", "Sort this pile of scanned digits as cheaply as possible."),
    ("skim-digits", "bulk reading of digits at low cost"),
    ("tell-parity", "Is the number in this image even or odd?"),
    ("tell-parity", "is it an odd digit"),
    ("identify-wine", "From which grape was this wine made?"),
    ("identify-wine", "classify this wine"),
    ("screen-tumour", "Does this biopsy look malignant or benign?"),
    ("screen-tumour", "is it cancer"),
]


@pytest.fixture(scope="module")
def analyser() -> Analyser:
    made = [digits.parity, digits.fuse_scores, digits.read_strokes, digits.stroke_features, tables.wine_vote]
    return Analyser(Catalogue.of([extension().card() for extension in made], [task.goal for task in tasks()]))


@pytest.mark.parametrize(("goal", "sentence"), SENTENCES)
def test_a_sentence_reaches_its_goal(analyser: Analyser, goal: str, sentence: str) -> None:
    assert analyser.analyse(sentence).goal == goal


def test_sentences_reach_every_goal() -> None:
    assert {goal for goal, _ in SENTENCES} == {task.goal.name for task in tasks()}


@pytest.mark.parametrize("sentence", ["Translate this letter into French.", "What is the weather tomorrow?"])
def test_a_sentence_that_means_no_goal_is_asked_back(analyser: Analyser, sentence: str) -> None:
    with pytest.raises(Unsure) as caught:
        analyser.analyse(sentence)
    assert caught.value.nearest
