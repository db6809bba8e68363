"""Starts modules as a user does: `python -m module words`."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 900  # seconds that a command may take


class Ended(NamedTuple):
  """What a command left: its exit status and what it printed."""

  returncode: int
  stdout: str
  stderr: str


class Starter:
  """Runs commands, each in an interpreter of its own, with some variables."""

  def __init__(self, **variables: str):
    self._variables = {"JAX_PLATFORMS": "cpu", **variables}

  def run(self, module: str, *words: str, cwd=ROOT, **variables) -> Ended:
    """Runs `python -m module words` in a folder with more variables."""
    done = subprocess.run(
      [sys.executable, "-W", "error::RuntimeWarning", "-m", module, *words],
      cwd=cwd,
      env={
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **self._variables,
        **variables,
      },
      capture_output=True,
      text=True,
      timeout=PATIENCE,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
