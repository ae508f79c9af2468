"""A family as a document, by the name of its format: what a command or a route hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lineage.errors import LineageRefused
from lineage.graph.exports.cyclonedx import cyclonedx_json
from lineage.graph.exports.openlineage import openlineage_json
from lineage.graph.family import Family
from lineage.graph.picture import draw_family
from lineage.graph.records import VersionId

Marks = Mapping[VersionId, Sequence[str]]

MEDIA_TYPES = {
    "svg": "image/svg+xml",
    "openlineage": "application/x-ndjson",
    "cyclonedx": "application/vnd.cyclonedx+json",
}


def document(
    format: str, family: Family, *, made_s: float, centre: VersionId | None = None, marks: Marks | None = None
) -> str:
    """The family as `svg`, `openlineage` (an event on a line) or `cyclonedx` (JSON).

    `made_s` is the time of the document, since 1970, `centre` the version that it is about, `marks` are words beside
    versions of a picture. Raises LineageRefused for another format, StoreUnavailable where its extra is missing.
    """
    makers: dict[str, Callable[[], str]] = {
        "svg": lambda: draw_family(family, centre, marks),
        "openlineage": lambda: openlineage_json(family),
        "cyclonedx": lambda: cyclonedx_json(family, made_s=made_s, centre=centre),
    }
    if format not in makers:
        raise LineageRefused(f"{format[:40]!r} is no format.", hint=f"There are: {', '.join(makers)}.")
    return makers[format]()
