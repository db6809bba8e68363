"""Starts modules as `python -m` does, in children that need not import.

Importing is most of what a small command does. A server imports once what the
experiments import, starts no device, and forks a child for every command: it
gets its words, folder, variables and input, runs `__main__`, and what it prints
and its exit status come back. A contestant of a benchmark is forked too. What
tests the start itself starts an interpreter of its own.
"""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import NamedTuple
import warnings

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 600  # seconds that a command may take


class Ended(NamedTuple):
  """What a command left: its exit status and what it printed."""

  returncode: int
  stdout: str
  stderr: str


class Server:
  """Forks commands from a process that has imported.

  Args:
    **variables: added to the environment, for what is read at the import.
  """

  def __init__(self, **variables: str):
    words = ("-W", "error::RuntimeWarning", "-m", "tests.started")
    self._process = subprocess.Popen(
      [sys.executable, *words],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def run(self, module: str, *words: str, cwd=ROOT, **variables) -> Ended:
    """Runs `python -m module words` in a folder with more variables."""
    assert self._process.stdin and self._process.stdout
    request = [module, words, str(cwd), variables]
    print(json.dumps(request), file=self._process.stdin, flush=True)
    return Ended(*json.loads(self._process.stdout.readline()))

  def close(self) -> None:
    """Ends it; nothing of it needs tidying."""
    self._process.kill()
    self._process.communicate()


# --- in the server -----------------------------------------------------------


def forked(module, words, folder, variables, given="") -> Ended:
  """Runs a module as `__main__` in a child of this process."""
  files = [tempfile.TemporaryFile("w+") for _ in range(3)]
  files[0].write(given)
  files[0].seek(0)
  child = os.fork()
  if not child:
    code = 1
    try:
      signal.alarm(PATIENCE)
      for number, file in enumerate(files):
        os.dup2(file.fileno(), number)
      sys.stdin = os.fdopen(0, closefd=False)
      os.chdir(folder)
      os.environ.update(variables)
      sys.argv = [module, *words]
      runpy.run_module(module, run_name="__main__", alter_sys=True)
      code = 0
    except SystemExit as end:
      if isinstance(end.code, str):
        print(end.code, file=sys.stderr)
      code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
      traceback.print_exc()
    finally:
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  texts = []
  for file in files[1:]:
    file.seek(0)
    texts.append(file.read())
    file.close()
  files[0].close()
  return Ended(code, *texts)


def contestant(module, job, *, environment=None, **_):
  """Runs a benchmark's contestant, as `measure.run` does."""
  start = time.perf_counter()
  name = f"experiments.benchmarks.{module}"
  ended = forked(name, (), ROOT, environment or {}, json.dumps(job))
  wall = time.perf_counter() - start
  if ended.returncode:
    raise RuntimeError(f"{module} failed:\n{ended.stderr[-2000:]}")
  return {**json.loads(ended.stdout.splitlines()[-1]), "wall_seconds": wall}


def serve() -> None:
  """Imports, and answers one command after another."""
  import scipy.stats  # noqa: F401
  import sklearn.datasets  # noqa: F401

  from experiments import common  # noqa: F401
  from experiments.benchmarks import measure
  from minarch_jax import notebook, study  # noqa: F401
  from minarch_jax.report import building  # noqa: F401

  measure.run = contestant
  # The threads there are so far, of BLAS and malloc, mind that they are forked.
  warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)
  answers = os.fdopen(os.dup(1), "w")
  for line in sys.stdin:
    print(json.dumps(forked(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
  serve()
