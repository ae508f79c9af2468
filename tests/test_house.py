"""The rules of the house that a change could break without noticing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STOREYS = ("fenix", "cluster", "deployments", "repair", "planner", "lineage")  # from the roof down
FILES = [path for package in STOREYS for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """The first name of every absolute import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_and_every_file_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    storey = STOREYS.index(path.relative_to(ROOT).parts[0])
    above = set(imported(tree)) & {*STOREYS[:storey], "tests"}
    assert not above, f"{path.relative_to(ROOT)} imports {', '.join(above)}, which lies above it"
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("module", ["fenix", "fenix.cli", "planner.plan"])
def test_what_is_imported_early_does_not_pull_the_heavy_libraries(module: str) -> None:
    script = f"import sys, {module}; print([m for m in ('ray', 'torch', 'mlflow', 'sklearn') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_no_package_that_is_installed_makes_ray_parse_a_grammar() -> None:
    """Ray imports jsonschema, and that imports rfc3987-syntax where it is installed: 1.4 s in every replica."""
    script = "import sys, ray; print('rfc3987_syntax' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "False"
