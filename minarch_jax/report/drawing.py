"""Turns Vega-Lite into SVG, and SVG into PNG and PDF, without a browser.

Run as a program it does so for whoever writes to its standard input: the
converter holds Python's lock, so that figures are drawn side by side by
processes, not by threads. It imports nothing of this package, to start at once.
"""

from collections.abc import Callable
import functools
import itertools
import os
import pickle
import re
import signal
import sys
from typing import Any, BinaryIO

import vl_convert

_PNG_SCALE = 2.0

# In the description of a mark: what follows names the network it stands for.
STANDS_FOR = "\u2063"  # an invisible separator


@functools.cache
def start() -> None:
  """Starts the engine, which takes most of a second, with its own fonts alone.

  Liberation Sans is one of them. A file of it that the system has would be
  opened anew for every word that is measured, which takes as long as all else.
  Other versions of the font are as wide: the same SVG.
  """
  name, before = "FONTCONFIG_FILE", os.environ.get("FONTCONFIG_FILE")
  os.environ[name] = os.path.join(os.path.dirname(__file__), "fonts.conf")
  try:  # fonts are looked for when the first word is measured
    word = {"mark": "text", "encoding": {"text": {"value": "word"}}}
    vl_convert.vegalite_to_svg(word)
  finally:
    del os.environ[name]
    if before is not None:
      os.environ[name] = before


def svg(name: str, spec: dict[str, Any]) -> str:
  """Draws a figure; the same specification and name give the same bytes.

  The renderer numbers clip paths through the life of the process, so they are
  renumbered here, under `name`: several figures can then share one page. The
  network that a mark stands for becomes an attribute of the mark.
  """
  start()
  text = vl_convert.vegalite_to_svg(spec)
  numbers: dict[str, int] = {}
  counter = itertools.count()

  def renumbered(match: re.Match[str]) -> str:
    old = match.group(2)
    if old not in numbers:
      numbers[old] = next(counter)
    return f"{match.group(1)}{name}-{numbers[old]}"

  text = re.sub(r'((?:id="|url\(#))((?:clip|gradient_?)\d+)', renumbered, text)
  described = rf'aria-label="([^"]*){STANDS_FOR}([^"]*)"'
  return re.sub(described, r'aria-label="\1" data-network="\2"', text)


def png(text: str) -> bytes:
  """Converts an SVG, always to equal bytes."""
  return vl_convert.svg_to_png(text, scale=_PNG_SCALE)


# Resources of a PDF page, one a line, which the converter writes in an order
# that changes from run to run. Sorting keeps every byte offset.
_RESOURCES = re.compile(rb"(?:^ +/[a-z]+\d+ \d+ 0 R\n){2,}", re.MULTILINE)


def _sorted_lines(match: re.Match[bytes]) -> bytes:
  return b"".join(sorted(match.group().splitlines(keepends=True)))


def pdf(text: str) -> bytes:
  """Converts an SVG, always to equal bytes."""
  return _RESOURCES.sub(_sorted_lines, vl_convert.svg_to_pdf(text))


TASKS: dict[str, Callable[..., Any]] = {
  "start": start,
  "svg": svg,
  "png": png,
  "pdf": pdf,
}


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
  """Does tasks that are asked for, and pickles what they return or raise."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides when to end
  while True:
    try:
      task, *arguments = pickle.load(asked)
    except EOFError:
      return
    try:
      answer = TASKS[task](*arguments)
    except Exception as error:
      answer = error
    pickle.dump(answer, answers)
    answers.flush()


if __name__ == "__main__":
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else goes there
  serve(sys.stdin.buffer, answers)
