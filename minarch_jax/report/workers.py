"""Processes that draw figures beside the one that analyses."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import importlib.util
import os
import pickle
import queue
import subprocess
import sys
from typing import Any, NamedTuple


class Drawn(NamedTuple):
  """A figure.

  Attributes:
    svg: for the page.
    files: the formats that were wanted.
  """

  svg: str
  files: dict[str, bytes]


Promise = concurrent.futures.Future[Drawn]
# Asks for a figure: its name, what it is in Vega-Lite, the formats wanted.
Ask = Callable[[str, dict[str, Any], Sequence[str]], Promise]
Idle = queue.SimpleQueue[subprocess.Popen]

_MOST = 3  # processes that convert: a report has a dozen figures


@contextlib.contextmanager
def started(converters: int | None = None) -> Iterator[Ask]:
  """Starts processes that draw, and ends them with the block.

  One draws, for its engine grows fast as it goes; others convert what it drew.
  They get ready while the caller imports and analyses.

  Args:
    converters: how many others, which changes no byte; None = as many as pay.

  Yields:
    What asks them for a figure; it returns at once.
  """
  if converters is None:
    cores = len(os.sched_getaffinity(0))
    converters = min(max(cores - 1, 1), _MOST)
  draws: Idle = queue.SimpleQueue()
  converts: Idle = queue.SimpleQueue()

  def figure(name: str, spec: Any, formats: Sequence[str]) -> Drawn:
    text = _asked(draws, "svg", name, spec)
    files = {"svg": text.encode()} if "svg" in formats else {}
    for format in formats:
      if format != "svg":
        files[format] = _asked(converts, format, text)
    return Drawn(text, files)

  with contextlib.ExitStack() as stack:
    threads = concurrent.futures.ThreadPoolExecutor(1 + converters)
    stack.callback(threads.shutdown, cancel_futures=True)
    draws.put(stack.enter_context(_process()))
    threads.submit(_asked, draws, "start")
    for _ in range(converters):
      converts.put(stack.enter_context(_process()))
    yield lambda *arguments: threads.submit(figure, *arguments)


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


def _asked(idle: Idle, *task: Any) -> Any:
  """Has a process do a task of `drawing.TASKS`."""
  process = idle.get()
  assert process.stdin and process.stdout
  try:
    pickle.dump(task, process.stdin)
    process.stdin.flush()
    answer = pickle.load(process.stdout)
  except (EOFError, OSError, pickle.UnpicklingError) as error:
    process.kill()
    raise ChildProcessError(
      f"a process that draws figures ended with status {process.wait()}"
    ) from error
  finally:
    idle.put(process)
  if isinstance(answer, Exception):
    raise answer
  return answer
