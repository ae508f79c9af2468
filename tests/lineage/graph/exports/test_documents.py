"""Every format that is named can be had."""

from __future__ import annotations

import pytest

from lineage.errors import LineageRefused
from lineage.graph.exports.cyclonedx import cyclonedx_json
from lineage.graph.exports.documents import MEDIA_TYPES, document
from lineage.graph.exports.openlineage import openlineage_json
from lineage.graph.picture import draw_family
from tests.lineage.graph.families import digits_family, id_of


def test_each_format_is_what_its_own_module_makes() -> None:
    pytest.importorskip("openlineage.client")
    family, centre = digits_family(), id_of("tuned")
    made = {
        name: document(name, family, made_s=5.0, centre=centre, marks={centre: ["champion"]}) for name in MEDIA_TYPES
    }
    assert made == {
        "svg": draw_family(family, centre, {centre: ["champion"]}),
        "openlineage": openlineage_json(family),
        "cyclonedx": cyclonedx_json(family, made_s=5.0, centre=centre),
    }


def test_another_format_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(LineageRefused) as caught:
        document("pdf", digits_family(), made_s=0.0)
    assert "cyclonedx" in caught.value.hint
