"""Processes that draw figures beside the one that analyses."""

from collections.abc import Callable, Iterator
import concurrent.futures
import contextlib
import importlib.util
import os
import pickle
import queue
import subprocess
import sys
from typing import Any

Files = dict[str, bytes]  # a figure in each format
Promise = concurrent.futures.Future[Files]
# Asks for a figure: its name, what it is in Vega-Lite, the formats wanted.
Ask = Callable[[str, dict[str, Any], tuple[str, ...]], Promise]

_MOST = 4  # a report has a dozen figures, and a process takes a second to start


def now(*arguments: Any) -> Promise:
  """Draws a figure in this process."""
  from minarch_jax.report import drawing  # brings the converter

  promise = Promise()
  promise.set_result(drawing.draw(*arguments))
  return promise


def number() -> int:
  """How many processes pay on this machine; 0 = figures are drawn in this."""
  cores = len(os.sched_getaffinity(0))
  return min(cores, _MOST) if cores > 1 else 0


@contextlib.contextmanager
def started(count: int | None = None) -> Iterator[Ask]:
  """Starts processes that draw, and ends them with the block.

  They get ready while the caller imports and analyses. How many there are
  changes no byte.

  Args:
    count: of processes, 0 = draw in this one; None = as many as pay.

  Yields:
    What asks them; it returns at once.
  """
  count = number() if count is None else count
  if not count:
    yield now
    return
  idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()

  def drawn(*arguments: Any) -> Files:
    process = idle.get()
    try:
      return _answer(process, arguments)
    finally:
      idle.put(process)

  with contextlib.ExitStack() as stack:
    threads = concurrent.futures.ThreadPoolExecutor(count)
    stack.callback(threads.shutdown, cancel_futures=True)
    for _ in range(count):
      idle.put(stack.enter_context(_process()))
    yield lambda *arguments: threads.submit(drawn, *arguments)


@contextlib.contextmanager
def _process() -> Iterator[subprocess.Popen]:
  program = importlib.util.find_spec("minarch_jax.report.drawing")
  assert program and program.origin
  process = subprocess.Popen(
    [sys.executable, "-P", program.origin],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  assert process.stdin and process.stdout
  try:
    yield process
  finally:  # nothing that it could still do is wanted
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stdin):
      with contextlib.suppress(OSError):  # what was not sent is lost
        pipe.close()


def _answer(process: subprocess.Popen, arguments: Any) -> Files:
  assert process.stdin and process.stdout
  try:
    pickle.dump(arguments, process.stdin)
    process.stdin.flush()
    answer = pickle.load(process.stdout)
  except (EOFError, OSError, pickle.UnpicklingError) as error:
    raise ChildProcessError(
      f"a process that draws figures ended with status {process.wait()}"
    ) from error
  if isinstance(answer, Exception):
    raise answer
  return answer
