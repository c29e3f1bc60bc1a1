"""The one import of sqlite-utils.

It imports numpy wherever that is installed, only to know numpy's number types; none of those ever come here, and
loading numpy took 0.25 of the 0.6 s in which the app started. So numpy is out of sight for the moment of this import.
"""

from __future__ import annotations

import sys
from typing import Any

_modules: dict[str, Any] = sys.modules
_hidden = "numpy" not in _modules
if _hidden:
    _modules["numpy"] = None
try:
    from sqlite_utils import Database
finally:
    if _hidden:
        del _modules["numpy"]

__all__ = ["Database"]
