from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

import lineage
import planner


@pytest.mark.parametrize("package", [planner, lineage], ids=lambda package: package.__name__)
def test_the_docstring_of_a_package_has_a_line_for_each_of_its_files(package: ModuleType) -> None:
    (folder,) = package.__path__
    files = {path.name for path in Path(folder).glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^ *(\w+\.py) ", package.__doc__ or "", re.MULTILINE)) == files
