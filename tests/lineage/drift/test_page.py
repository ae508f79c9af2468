from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs/drift.md"


def test_the_code_on_the_page_about_drift_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {"__name__": "docs"})
