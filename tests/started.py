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


def ended(process: subprocess.Popen) -> Ended:
  """Waits for a command to end; kills it where that takes too long."""
  try:
    stdout, stderr = process.communicate(timeout=PATIENCE)
  except BaseException:
    process.kill()
    process.wait()
    raise
  return Ended(process.returncode, stdout, stderr)


class Starter:
  """Runs commands, each in an interpreter of its own, with some variables."""

  def __init__(self, **variables: str):
    self._variables = {"JAX_PLATFORMS": "cpu", **variables}

  def start(
    self, module: str, *words: str, cwd=ROOT, **variables
  ) -> subprocess.Popen:
    """Starts `python -m module words` in a folder with more variables."""
    return subprocess.Popen(
      [sys.executable, "-W", "error::RuntimeWarning", "-m", module, *words],
      cwd=cwd,
      env={
        **os.environ,
        "PYTHONPATH": str(ROOT),
        **self._variables,
        **variables,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, module: str, *words: str, cwd=ROOT, **variables) -> Ended:
    """Runs `python -m module words` in a folder with more variables."""
    return ended(self.start(module, *words, cwd=cwd, **variables))
