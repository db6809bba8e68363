"""Starts modules as a user does: `python -m module words`."""

import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 900  # seconds that a command may take
PYTHON = [sys.executable, "-W", "error::RuntimeWarning", "-m"]


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
  """Runs commands with some variables.

  Importing takes longer than many of them, so each is a fork of an interpreter
  that has done so, unless it asks for variables of its own: those are read by
  what is imported.
  """

  def __init__(self, **variables: str):
    self._variables = {
      "JAX_PLATFORMS": "cpu",
      "PYTHONPATH": str(ROOT),
      **variables,
    }
    self._forking: subprocess.Popen | None = None
    self._began = dict(os.environ)

  def run(
    self, module: str, *words: str, cwd: str | os.PathLike = ROOT, **variables
  ) -> Ended:
    """Runs `python -m module words` in a folder with more variables."""
    if variables or dict(os.environ) != self._began:
      return ended(self.start(module, *words, cwd=cwd, **variables))
    with tempfile.TemporaryDirectory() as folder:
      prints = [os.path.join(folder, name) for name in ("stdout", "stderr")]
      order = {
        "module": module,
        "words": words,
        "folder": str(cwd),
        "prints": prints,
      }
      status = self._forked(order)
      return Ended(status, *(pathlib.Path(p).read_text() for p in prints))

  def start(
    self, module: str, *words: str, cwd: str | os.PathLike = ROOT, **variables
  ) -> subprocess.Popen:
    """Starts an interpreter for it."""
    return subprocess.Popen(
      [*PYTHON, module, *words],
      cwd=cwd,
      env=os.environ | self._variables | variables,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def _forked(self, order: dict) -> int:
    if self._forking is None:
      self._forking = subprocess.Popen(
        # OpenBLAS and JAX have threads that are at rest.
        [*PYTHON[:1], "-W", "ignore:.*fork", *PYTHON[1:], "tests.forked"],
        cwd=ROOT,
        env=self._began | self._variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
    assert self._forking.stdin and self._forking.stdout
    self._forking.stdin.write(json.dumps(order) + "\n")
    self._forking.stdin.flush()
    if not select.select([self._forking.stdout], [], [], PATIENCE)[0]:
      raise TimeoutError(f"{order} takes longer than {PATIENCE} s")
    return int(self._forking.stdout.readline())

  def end(self) -> None:
    """Ends the interpreter that is forked."""
    if self._forking is not None:
      self._forking.communicate(timeout=PATIENCE)
