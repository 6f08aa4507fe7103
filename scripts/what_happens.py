#!/usr/bin/env python3
"""Write docs/what-happens-when.md anew from the table in tests/odd/; a test fails when it is stale.

python scripts/what_happens.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.odd.table import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
