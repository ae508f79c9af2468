"""From a sentence to a goal, or an honest question back.

`Analyser` compares a sentence with what the goals of a catalogue (and the extensions that lead to them) say of
themselves. Which texts are alike is the encoder's business: `TfidfEncoder` is built in and needs nothing but numpy;
`SentenceEncoder` runs a sentence-transformers model and comes with the extra `fenix-serve[sentences]`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from planner.catalogue import Catalogue
from planner.errors import BadRequest, Unsure
from planner.features import Array, Feature, shapes_unify
from planner.goals import Goal
from planner.words import GENERIC, SPELLING, STOP, SYNONYMS

Scores = npt.NDArray[np.float32]

MAX_SENTENCE_CHARS = 2000
_MAX_WORDS = 48  # content words of a sentence that are looked at: bounds the work of one analysis
_MAX_CARD_TEXTS = 64  # descriptions of extensions read per feature type: bounds the index on huge catalogues
_CARD_WEIGHT = 0.85  # an extension that leads to a goal says less of it than the goal does
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class Calibration:
    """How sure a match is: the chance that the sentence means any goal, times the chance that it means this one
    and not another.

    The first is logistic, `1 / (1 + exp(-steepness * (best - middle)))`; the second is the best goal's share of
    `exp(rivalry * similarity)` among the nearest. The figures are fitted to tests/planner/sentences.py.
    Source: Platt 1999, Probabilistic outputs for support vector machines.
    """

    steepness: float
    middle: float
    rivalry: float

    def sureness(self, best: float, *others: float) -> float:
        """In [0, 1], for the similarity of the best goal and those of its nearest rivals."""
        if best <= 0.0:
            return 0.0
        any_goal = 1.0 / (1.0 + math.exp(-self.steepness * (best - self.middle)))
        return any_goal / (1.0 + sum(math.exp(self.rivalry * (other - best)) for other in others))


class Index(Protocol):
    """Texts made ready for comparison, in groups."""

    def similarities(self, sentence: str) -> Scores:
        """How alike the sentence and each group are, in [0, 1], shape (n_groups,). 0 where nothing is shared."""


class Encoder(Protocol):
    """Says which texts are alike. `index` may be slow (it runs once per catalogue); the index answers fast."""

    @property
    def calibration(self) -> Calibration: ...

    def index(self, groups: Sequence[Sequence[Text]]) -> Index:
        """An index over groups of texts; a group is as near as its texts together make it."""


class Text(NamedTuple):
    """One text that describes a goal; `weight` in (0, 1] scales its similarity."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Match:
    """A goal and how alike it is to the sentence, in [0, 1]."""

    goal: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a sentence means: the goal, how sure that is in [0, 1], and the nearest goals, best first."""

    goal: str
    sureness: float
    nearest: tuple[Match, ...]


class Analyser:
    """Matches sentences with the goals of one catalogue snapshot. Made once per epoch; safe to share."""

    def __init__(self, catalogue: Catalogue, encoder: Encoder | None = None, threshold: float = 0.5) -> None:
        """`threshold` is the least sureness that is answered rather than asked back."""
        self._goals = tuple(sorted(catalogue.goals.values(), key=lambda goal: goal.name))
        self._threshold = threshold
        encoder = encoder or TfidfEncoder()
        self._calibration = encoder.calibration
        texts = _texts(self._goals, catalogue)
        self._index = encoder.index(texts)
        self._verbatim: dict[str, int | None] = {}  # a text as it stands -> its goal, None when several have it
        for i, group in enumerate(texts):
            for text, weight in group:
                if weight == 1.0:
                    key = _plain(text)
                    self._verbatim[key] = i if self._verbatim.get(key, i) == i else None

    def analyse(self, sentence: str, inputs: Mapping[str, Array] | None = None) -> Analysis:
        """The goal that a sentence means.

        When `inputs` are given (name -> array of shape (n_rows, *row shape)), only goals that take them are looked
        at; if no goal does, all are, so that the check of the inputs can say what is wrong with them.
        Raises Unsure, naming the nearest goals, for a sentence that could mean several goals or none; BadRequest
        for one that is no text or longer than 2,000 characters.
        """
        if not isinstance(sentence, str):
            raise BadRequest(f"a sentence is a text, not {type(sentence).__name__}.")
        if len(sentence) > MAX_SENTENCE_CHARS:
            raise BadRequest(
                f"the sentence has {len(sentence)} characters, more than {MAX_SENTENCE_CHARS}.",
                hint="Say what you want in one sentence; data goes into the inputs.",
            )
        if not self._goals:
            raise Unsure("no goal is deployed that a sentence could mean.", hint="Deploy one with `fenix deploy`.")
        similarities = self._index.similarities(sentence)
        order = np.argsort(-similarities, kind="stable")  # the goals are in order of name: so are equals
        ranked = [Match(self._goals[i].name, float(similarities[i])) for i in (order if inputs else order[:3])]
        nearest = tuple(ranked[:3])
        if inputs:
            fitting = {goal.name for goal in self._goals if takes(goal, inputs)}
            nearest = tuple(match for match in ranked if match.goal in fitting)[:3] or nearest
        verbatim = self._verbatim.get(_plain(sentence))
        if verbatim is not None and (goal := self._goals[verbatim].name) in {match.goal for match in nearest}:
            return Analysis(goal, 1.0, nearest)
        sureness = self._calibration.sureness(*(match.similarity for match in nearest))
        if sureness < self._threshold:
            raise self._unsure(sentence, sureness, nearest, ranked[0])
        return Analysis(nearest[0].goal, sureness, nearest)

    def _unsure(self, sentence: str, sureness: float, nearest: tuple[Match, ...], overall: Match) -> Unsure:
        if not sentence.strip():
            message = "the sentence is empty."
        else:
            quoted = sentence.strip() if len(sentence.strip()) <= 80 else sentence.strip()[:77] + "..."
            message = f"not sure what {quoted!r} means (sureness {sureness:.2f}, needed {self._threshold:.2f})."
        descriptions = {goal.name: goal.description for goal in self._goals}
        listed = "; ".join(
            f"{match.goal} ({descriptions[match.goal].rstrip('.')})" if descriptions[match.goal] else match.goal
            for match in nearest
        )
        hint = f"Name a goal, or say it in its words. Nearest: {listed}."
        if overall.similarity > nearest[0].similarity:
            hint += f" {overall.goal} is nearer, but does not take these inputs."
        return Unsure(message, hint=hint, nearest=tuple(match.goal for match in nearest))


def takes(goal: Goal, inputs: Mapping[str, Array]) -> bool:
    """Whether every given array has the name and row shape of one of the goal's inputs.

    Datatypes are not compared: the check of the inputs does that, with a better message.
    """
    features: dict[str, Feature] = {port.name: port.feature for port in goal.inputs}
    return all(
        name in features and values.ndim > 0 and shapes_unify(features[name].shape, values.shape[1:])
        for name, values in inputs.items()
    )


def _texts(goals: Sequence[Goal], catalogue: Catalogue) -> list[list[Text]]:
    """Per goal, what it and the extensions that give its outputs say of themselves, without repetitions."""
    wanted = {port.feature.type for goal in goals for port in goal.outputs}
    giving: dict[str, list[str]] = {type_: [] for type_ in wanted}
    for card in catalogue.cards.values():
        for port in card.outputs:
            words = port.feature.type.split("/")
            for n in range(1, len(words) + 1):  # an extension gives what its output is-a
                texts = giving.get("/".join(words[:n]))
                if texts is not None and len(texts) < _MAX_CARD_TEXTS:
                    texts.extend(text for text in (card.description, *card.examples) if text)
    groups = []
    for goal in goals:
        types = dict.fromkeys(port.feature.type for port in goal.outputs)
        own = dict.fromkeys((goal.name, goal.description, *goal.examples))
        group = [Text(text) for text in own if text]
        group.append(Text(" ".join(types), _CARD_WEIGHT))
        group += [Text(text, _CARD_WEIGHT) for text in dict.fromkeys(t for type_ in types for t in giving[type_])]
        groups.append(group)
    return groups


def _plain(text: str) -> str:
    """Lower case, without accents, punctuation and double spaces."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    return " ".join(_WORD.findall("".join(c for c in folded if not unicodedata.combining(c))))


# ---------------------------------------------------------------- the built-in encoder


class TfidfEncoder:
    """TF-IDF over words, where words also match by spelling and by synonym, without any model.

    A group's similarity weighs two views, one to two: the cosine between the sentence and its nearest text, in which
    every word of the sentence is matched with the most similar word of the text (SoftTFIDF), and the share of the
    sentence's weight that the group knows at all. Words that no text has keep their weight in both, so a sentence
    about something else stays far from everything. Spelling is compared by edit distance among the words that share
    character bigrams. Source: Cohen, Ravikumar and Fienberg 2003, A comparison of string distance metrics for
    name-matching tasks.
    """

    calibration = Calibration(steepness=18.0, middle=0.42, rivalry=30.0)

    def index(self, groups: Sequence[Sequence[Text]]) -> Index:
        return _TfidfIndex(groups)


_GENERIC_WEIGHT = 0.35
_SYNONYM = 0.9  # how alike two words of one group of synonyms are


class _TfidfIndex:
    def __init__(self, groups: Sequence[Sequence[Text]]) -> None:
        texts = [(g, Counter(_stems(text)), weight) for g, group in enumerate(groups) for text, weight in group]
        self._vocabulary = {word: i for i, word in enumerate(sorted({w for _, words, _ in texts for w in words}))}
        n_words, n_groups = len(self._vocabulary), len(groups)
        self._present = np.zeros((n_words, n_groups), dtype=np.float32)
        for g, words, weight in texts:
            for word in words:
                cell = self._vocabulary[word], g
                self._present[cell] = max(self._present[cell], weight)
        in_groups = np.maximum((self._present > 0).sum(axis=1), 1)
        rarity = np.maximum(0.15, 1.0 - np.log(in_groups) / math.log(max(n_groups, 5) + 1))
        generic = np.array([_GENERIC_WEIGHT if word in GENERIC else 1.0 for word in self._vocabulary], dtype=np.float32)
        self._weight = (rarity * generic).astype(np.float32)
        # Transposed, so that one word of a sentence reads one row: (n_words, n_texts), columns of norm `weight`.
        self._texts = np.zeros((n_words, len(texts)), dtype=np.float32)
        for t, (_, words, weight) in enumerate(texts):
            ids = [self._vocabulary[word] for word in words]
            column = self._weight[ids] * np.array([1 + math.log(n) for n in words.values()], dtype=np.float32)
            if ids:
                self._texts[ids, t] = column / np.linalg.norm(column) * weight
        sizes = [len(group) for group in groups]
        self._starts = np.cumsum([0, *sizes[:-1]]) if sizes else np.zeros(0, dtype=np.intp)
        posted: dict[str, list[int]] = {}
        for word, i in self._vocabulary.items():
            for bigram in _bigrams(word):
                posted.setdefault(bigram, []).append(i)
        self._bigrams = {bigram: np.array(ids) for bigram, ids in posted.items()}
        self._n_bigrams = np.array([len(_bigrams(word)) for word in self._vocabulary])
        self._words = tuple(self._vocabulary)
        self._kin = lru_cache(maxsize=4096)(self._find_kin)

    def similarities(self, sentence: str) -> Scores:
        n_groups = len(self._starts)
        words = list(dict.fromkeys(_stems(sentence)))[:_MAX_WORDS]
        if not words or not self._words:
            return np.zeros(n_groups, dtype=np.float32)
        cosine = np.zeros(self._texts.shape[1], dtype=np.float32)
        known = np.zeros(n_groups, dtype=np.float32)
        total = square = topic = 0.0
        for word in words:
            ids, alike, weight = self._kin(word)
            total += weight
            square += weight * weight
            topic += _GENERIC_WEIGHT**2 if word in GENERIC else 1.0
            if len(ids):
                cosine += weight * (alike * self._texts[ids]).max(axis=0)
                known += weight * (alike * self._present[ids]).max(axis=0)
        nearest = np.maximum.reduceat(cosine, self._starts) / math.sqrt(square)
        # A sentence of nothing but common words ("classify this") is no evidence, however well it fits.
        evidence = min(1.0, math.sqrt(topic))
        return (evidence * (nearest + 2 * known / total) / 3).astype(np.float32)

    def _find_kin(self, word: str) -> tuple[npt.NDArray[np.intp], Scores, float]:
        """The known words that mean or spell the same: ids (n,), likeness (n, 1), and the weight of `word` itself."""
        kin: dict[int, float] = {}
        for group in SYNONYMS:
            if word in group:
                kin.update((self._vocabulary[other], _SYNONYM) for other in group if other in self._vocabulary)
        bigrams = _bigrams(word)
        if posted := [self._bigrams[bigram] for bigram in bigrams if bigram in self._bigrams]:
            shared = np.bincount(np.concatenate(posted), minlength=len(self._words))
            dice = 2 * shared / (self._n_bigrams + len(bigrams))
            close = np.flatnonzero(dice >= 0.45)  # less is no slip: spares the edit distance
            for i in close[np.argsort(-dice[close], kind="stable")[:4]].tolist():
                if (alike := _spelt_alike(word, self._words[i])) > kin.get(i, 0.0):
                    kin[i] = alike
        own = self._vocabulary.get(word)
        if own is not None:
            kin[own] = 1.0
        ids = np.fromiter(kin, dtype=np.intp, count=len(kin))
        likeness = np.fromiter(kin.values(), dtype=np.float32, count=len(kin))[:, None]
        if own is not None:
            weight = float(self._weight[own])
        elif kin:  # a mistyped word weighs what the word it stands for weighs
            weight = float(self._weight[max(kin, key=lambda i: (kin[i], -i))])
        else:
            weight = _GENERIC_WEIGHT if word in GENERIC else 1.0
        return ids, likeness, weight


def _bigrams(word: str) -> set[str]:
    padded = f"^{word}$"
    return {padded[i : i + 2] for i in range(len(padded) - 1)}


def _spelt_alike(a: str, b: str) -> float:
    """In [0, 1]: 1 for the same word, 0 below what a typing slip or another ending explains."""
    longer = max(len(a), len(b))
    if a == b:
        return 1.0
    if abs(len(a) - len(b)) <= 2 and longer >= 4:
        alike = 1.0 - _edits(a, b) / longer
        # A slip in the first letter is rare, and short words have many neighbours (wine, line, wind).
        if alike >= (0.8 if a[0] == b[0] else 0.85):
            return alike
    prefix = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return prefix / longer if prefix >= 5 and prefix / longer >= 0.6 else 0.0


def _edits(a: str, b: str) -> int:
    """Insertions, deletions, substitutions and swaps of neighbours that turn a into b (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]


def _stems(text: str) -> Iterable[str]:
    """The content words of a text, in order, each cut to a common form. `readDigit` and `read-digit` are two words."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for word in _plain(split).split():
        if word not in STOP:
            stem = _stem(word)
            if stem not in STOP:
                yield stem


def _stem(word: str) -> str:
    """A word without its commonest endings: plural, -ing, -ed. Light on purpose: spelling covers the rest."""
    if word in SPELLING:
        return SPELLING[word]
    for ending, instead, least in (("ies", "y", 4), ("sses", "ss", 5), ("ing", "", 6), ("ed", "", 5), ("s", "", 4)):
        if word.endswith(ending) and len(word) >= least:
            if ending == "s" and word.endswith(("ss", "us", "is")):
                break
            word = word[: -len(ending)] + instead
            if ending in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]
            break
    word = re.sub(r"(?<=[iy])z(?=e|$)", "s", word)
    return SPELLING.get(word, word)


# ---------------------------------------------------------------- the stronger encoder


class SentenceEncoder:
    """A sentence-transformers model from a local folder or by name; needs the extra `fenix-serve[sentences]`.

    Loaded from disk alone when `model` is a folder. Raises BadRequest when the extra is missing or the model cannot
    be loaded. Source: Reimers and Gurevych 2019, Sentence-BERT.
    """

    calibration = Calibration(steepness=17.0, middle=0.42, rivalry=30.0)

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise BadRequest(
                "the sentence encoder needs sentence-transformers, which is not installed.",
                hint="Install the extra: pip install 'fenix-serve[sentences]', or use the built-in encoder.",
            ) from None
        try:
            self._model: Any = SentenceTransformer(model, device="cpu", trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise BadRequest(
                f"sentence model {model!r} cannot be loaded: {str(error).splitlines()[0]}",
                hint="Give the folder of a sentence-transformers model, or its name where there is a network.",
            ) from None

    def encode(self, texts: Sequence[str]) -> Scores:
        """Unit vectors, shape (len(texts), n_dimensions)."""
        vectors = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    def index(self, groups: Sequence[Sequence[Text]]) -> Index:
        return _VectorIndex(self, groups)


class _VectorIndex:
    """The mean of what the model and the words say: a model knows paraphrases, words survive typing slips."""

    def __init__(self, encoder: SentenceEncoder, groups: Sequence[Sequence[Text]]) -> None:
        self._encoder = encoder
        self._words = _TfidfIndex(groups)
        texts = [text for group in groups for text in group]
        weights = np.array([weight for _, weight in texts], dtype=np.float32)
        self._vectors = encoder.encode([text for text, _ in texts]) * weights[:, None]
        sizes = [len(group) for group in groups]
        self._starts = np.cumsum([0, *sizes[:-1]])

    def similarities(self, sentence: str) -> Scores:
        if not self._vectors.size or not sentence.strip():
            return np.zeros(len(self._starts), dtype=np.float32)
        cosine = self._vectors @ self._encoder.encode([sentence])[0]
        nearest: Scores = np.maximum.reduceat(np.clip(cosine, 0.0, 1.0), self._starts)
        return ((nearest + self._words.similarities(sentence)) / 2).astype(np.float32)
