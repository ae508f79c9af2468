from __future__ import annotations

import pytest

from fenix.demo import training
from fenix.demo.goals import tasks
from planner.cards import Card
from planner.catalogue import Catalogue
from planner.errors import Unsure
from planner.intent import Analyser

SENTENCES = [
    ("read-digit", "Read the handwritten digit in this picture, please."),
    ("read-digit", "What number has been written here?"),
    ("read-digit", "Please recognise this digit accurately."),
    ("read-scan", "Read this pile of scanned sheets as cheaply as possible."),
    ("read-scan", "What is written on this sheet of paper?"),
    ("tell-parity", "Is the number in this image even or odd?"),
    ("tell-parity", "is it an odd digit"),
    ("identify-wine", "From which grape was this wine made?"),
    ("identify-wine", "classify this wine"),
    ("screen-tumour", "Does this biopsy look malignant or benign?"),
    ("screen-tumour", "is it cancer"),
]


@pytest.fixture(scope="module")
def analyser() -> Analyser:
    cards = [function().card() for function in training.FUNCTIONS]
    for recipe in training.RECIPES:
        cards.append(Card(recipe.name, "1", (recipe.takes,), (recipe.gives,), description=recipe.description))
    return Analyser(Catalogue.of(cards, [task.goal for task in tasks()]))


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
