"""What the sentence analyser knows of English before it has read a catalogue: data only, no code.

Small on purpose. It makes short sentences comparable, no more; whoever needs real understanding takes the
sentence encoder of the `sentences` extra.
"""

from __future__ import annotations

# Carry no topic at all: dropped from sentences and descriptions alike.
STOP = frozenset(
    """
    a about all also am an and any are as at be been being but by can could did do does doing done for from get give
    go got had has have he her here hers hey hi him his how i if in into is isn it its just know let like lot may me
    mean might mine more most much must my need no not now of off ok okay on one ones or our out over per please
    quick quickly really s say says shall she should so some somebody someone something t tell than thank thanks that
    the their them then there these teh they thing things think this those to today tomorrow too under up us very want
    was waht we were what whats when where whether which who whom whose why whcih wich will with would yes you your
    """.split()  # noqa: SIM905
)

# Said to nearly every model ("classify this image"): they count, but cannot carry a sentence alone.
GENERIC = frozenset(
    """
    analyse answer assess assign belong best case category certain check class classify compute data decide describe
    detect determine different distinguish estimate evaluate example explain extract feature figure file find found
    given good guess help identify image input item kind label look made make measure measurement model name new
    number old output photo picture possible predict prediction probable probably produce put read recognise
    record result row sample see separate show small sort stand take thousand type use using value work write zero
    two three four five six seven eight nine ten year
    """.split()  # noqa: SIM905
)

# British and American, and endings that the stemmer leaves apart. Applied after stemming.
SPELLING = {
    "tumor": "tumour",
    "color": "colour",
    "recognis": "recognise",
    "analys": "analyse",
    "analysis": "analyse",
    "categorise": "category",
    "classification": "classify",
    "classifier": "classify",
    "identification": "identify",
    "license": "licence",
    "news": "news",
    "species": "species",
    "center": "centre",
    "wrote": "write",
    "written": "write",
    "writing": "write",
    "writ": "write",
    "people": "person",
}

# Words that people use for one another when they speak to a model. A word may be in several groups.
SYNONYMS = tuple(
    frozenset(group.split())
    for group in (
        "image picture photo scan photograph",
        "digit number numeral figure",
        "tumour cancer neoplasm lump",
        "malignant malignancy cancerous harmful",
        "benign harmless",
        "diagnose diagnosis diagnostic",
        "language tongue",
        "kind type sort class category variety species",
        "variety cultivar",
        "flower blossom plant",
        "price cost worth value",
        "sentiment mood feeling emotion opinion tone",
        "positive happy favourable",
        "negative angry unhappy unfavourable",
        "spam junk unwanted",
        "email mail message",
        "house home apartment flat",
        "fraud fraudulent scam suspicious",
        "customer client subscriber user",
        "text sentence passage document paragraph",
        "speech voice audio recording",
        "car vehicle automobile",
        "summary summarise shorten condense",
        "translate translation",
        "illness disease sickness",
        "face person",
        "forecast predict prediction",
        "error fault failure defect anomaly",
        "count quantity amount",
    )
)
