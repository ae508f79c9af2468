from __future__ import annotations

import re
from pathlib import Path

import pytest

import planner.policies
from planner.policies import DEFAULT_POLICY
from planner.policies.registry import make_policy, policies


def test_all_policies_are_found() -> None:
    assert set(policies()) >= {"aimd", "fitted", "fixed", "greedy", "learned", "thompson"}
    assert DEFAULT_POLICY in policies()


def test_a_policy_starts_with_what_is_known_of_the_extension() -> None:
    assert make_policy("greedy", 0, 3.0, 0.5).expected_ms(10) == 8.0


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(KeyError, match="telepathy"):
        make_policy("telepathy")


def test_the_docstring_of_the_package_has_a_line_for_each_of_its_files() -> None:
    (folder,) = planner.policies.__path__
    files = {path.name for path in Path(folder).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^ *(\w+\.py) ", planner.policies.__doc__ or "", re.MULTILINE)) == files


def test_the_docs_name_every_policy_and_the_default() -> None:
    page = (Path(__file__).parents[3] / "docs/batching.md").read_text()
    for name in policies():
        assert f"`{name}`" in page
    assert f"The default is `{DEFAULT_POLICY}`" in page
