"""The report: tables as CSV, figures as SVG, PNG and PDF, one HTML page.

Its names are imported when first used: to find that the report that stands is
still true takes none of what draws one.
"""

import importlib
import typing
from typing import Any

if typing.TYPE_CHECKING:
  from minarch_jax.report.building import build
  from minarch_jax.report.standing import Built, find, run_of
  from minarch_jax.report.writing import analyse, write

_HOME = {
  "analyse": "writing",
  "build": "building",
  "Built": "standing",
  "find": "standing",
  "run_of": "standing",
  "write": "writing",
}

__all__ = ["Built", "analyse", "build", "find", "run_of", "write"]


def __getattr__(name: str) -> Any:
  if name in _HOME:
    home = importlib.import_module(f"minarch_jax.report.{_HOME[name]}")
    return getattr(home, name)
  raise AttributeError(f"module 'minarch_jax.report' has no attribute {name!r}")
