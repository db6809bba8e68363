"""The report: tables as CSV, figures as SVG, PNG and PDF, one HTML page.

Its names are imported when first used: to find that the report that stands is
still true takes none of what draws one.
"""

import importlib
import typing
from typing import Any

from minarch_jax.report.standing import Built, find, run_of

if typing.TYPE_CHECKING:
  from minarch_jax.report.building import analyse, build, write

__all__ = ["Built", "analyse", "build", "find", "run_of", "write"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    building = importlib.import_module("minarch_jax.report.building")
    return getattr(building, name)
  raise AttributeError(f"module 'minarch_jax.report' has no attribute {name!r}")
