"""Turns Vega-Lite into SVG, PNG and PDF, without a browser.

Run as a program it does so for whoever writes to its standard input: the
converter is one engine of JavaScript, and holds Python's lock meanwhile, so
that figures are drawn side by side by processes, not by threads. It imports
nothing of this package, to start at once.
"""

from collections.abc import Callable, Sequence
import itertools
import os
import pickle
import re
import signal
import sys
from typing import Any, BinaryIO

import vl_convert

FORMATS = ("svg", "png", "pdf")
_PNG_SCALE = 2.0


def svg(name: str, spec: dict[str, Any]) -> str:
  """Draws a figure; the same specification and name give the same bytes.

  The renderer numbers clip paths through the life of the process, so they are
  renumbered here, under `name`: several figures can then share one page.
  """
  text = vl_convert.vegalite_to_svg(spec)
  numbers: dict[str, int] = {}
  counter = itertools.count()

  def renumbered(match: re.Match[str]) -> str:
    old = match.group(2)
    if old not in numbers:
      numbers[old] = next(counter)
    return f"{match.group(1)}{name}-{numbers[old]}"

  return re.sub(r'((?:id="|url\(#))((?:clip|gradient_?)\d+)', renumbered, text)


# Resources of a PDF page, one a line, which the converter writes in an order
# that changes from run to run. Sorting keeps every byte offset.
_RESOURCES = re.compile(rb"(?:^ +/[a-z]+\d+ \d+ 0 R\n){2,}", re.MULTILINE)


def _sorted_lines(match: re.Match[bytes]) -> bytes:
  return b"".join(sorted(match.group().splitlines(keepends=True)))


def _pdf(text: str) -> bytes:
  return _RESOURCES.sub(_sorted_lines, vl_convert.svg_to_pdf(text))


def _png(text: str) -> bytes:
  return vl_convert.svg_to_png(text, scale=_PNG_SCALE)


_FROM_SVG: dict[str, Callable[[str], bytes]] = {
  "svg": str.encode,
  "png": _png,
  "pdf": _pdf,
}


def draw(
  name: str, spec: dict[str, Any], formats: Sequence[str] = FORMATS
) -> dict[str, bytes]:
  """Draws a figure in some of `FORMATS`, always to equal bytes."""
  text = svg(name, spec)
  return {format: _FROM_SVG[format](text) for format in formats}


def serve(asked: BinaryIO, answers: BinaryIO) -> None:
  """Calls `draw` with what is asked and pickles results or exceptions."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks decides when to end
  svg("", {"mark": "point"})  # starts the engine, which takes most of a second
  while True:
    try:
      arguments = pickle.load(asked)
    except EOFError:
      return
    try:
      answer = draw(*arguments)
    except Exception as error:
      answer = error
    pickle.dump(answer, answers)
    answers.flush()


if __name__ == "__main__":
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else goes there
  serve(sys.stdin.buffer, answers)
