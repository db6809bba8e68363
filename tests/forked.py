"""Runs modules in forks of an interpreter that has imported JAX and the like.

`python -m tests.forked` reads orders from its input, a line of JSON each:
module, words, folder, and the files for what is printed. It answers each with
the exit status. A fork ends as any interpreter does.
"""

import json
import os
import runpy
import sys

import altair
import flax.linen
import jax
import optax
import orbax.checkpoint
import rich.progress
import scipy.special
import sklearn.datasets

# What takes long to import and bears to be forked; polars has threads.
IMPORTED = (
  *(altair, flax.linen, jax, optax, orbax.checkpoint, rich.progress),
  *(scipy.special, sklearn.datasets),
)


def ordered() -> dict:
  """Forks once per order; returns, in each fork, what it is to run."""
  for line in sys.stdin:
    if not (child := os.fork()):
      return json.loads(line)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
  sys.exit()


def run(module: str, words: list[str], folder: str, prints: list[str]) -> None:
  """Becomes `python -m module words`, started in a folder."""
  nothing = os.open(os.devnull, os.O_RDONLY)
  files = [os.open(name, os.O_WRONLY | os.O_CREAT) for name in prints]
  for number, file in enumerate([nothing, *files]):
    os.dup2(file, number)
    os.close(file)
  sys.stdin = open(0)
  os.chdir(folder)
  sys.path[0] = folder
  sys.argv[1:] = words
  runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  run(**ordered())
