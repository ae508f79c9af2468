"""Documents that a change could make untrue: code blocks run, every error has its line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deployments.contract import check_contract
from deployments.extension import Extension
from planner import errors
from planner.errors import FenixError

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return _BLOCK.findall((ROOT / page).read_text())


def kinds(base: type[FenixError] = FenixError) -> Iterator[type[FenixError]]:
    """The error and all that are derived from it, but for those that tests make for themselves."""
    yield base
    for kind in base.__subclasses__():
        if not kind.__module__.startswith("tests."):
            yield from kinds(kind)


def test_the_extensions_in_the_docs_hold_their_contract() -> None:
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks("docs/extensions.md"):
        exec(block, names)
    made = [
        value
        for value in names.values()
        if isinstance(value, type) and issubclass(value, Extension) and value is not Extension
    ]
    assert {kind.name for kind in made} == {"scale", "read-digit", "majority"}
    for kind in made:
        extension = kind()
        extension.setup()
        check_contract(extension, np.random.default_rng(0)).raise_if_failed()


@pytest.mark.parametrize("kind", sorted(set(kinds()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_error_has_its_line_in_the_docs_with_its_statuses(kind: type[FenixError]) -> None:
    line = f"| `{kind.__name__}` | {kind.status} | {kind.grpc_status} |"
    assert line in (ROOT / "docs/api.md").read_text(), f"docs/api.md needs a line that begins {line}"
    assert kind.__name__ in (errors.__doc__ or ""), f"the tree in planner/errors.py lacks {kind.__name__}"


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_every_link_between_pages_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_every_file_that_the_architecture_names_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"`((?:fenix|cluster|deployments|planner|lineage|repair|tests|configs)/[\w/]+\.\w+)`", text))
    assert len(named) > 15
    for name in named:
        assert (ROOT / name).exists(), f"docs/architecture.md names {name}"
