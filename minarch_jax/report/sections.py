"""The sections of the page, in order."""

from typing import NamedTuple


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    text: what it is about; a figure's name in braces becomes its number.
    method: the heading of method.md that defines its terms, as an anchor.
  """

  title: str
  text: str
  method: str


SECTIONS = {
  "regimes": Section(
    "Which sizes fail, learn, overfit",
    "An architecture is unstable when more of its seeds fail, or its accuracy "
    "varies more over seeds, than the thresholds allow; overfitting when its "
    "validation loss rises again in most seeds; learning otherwise.",
    "regimes",
  ),
  "minimal": Section(
    "The smallest reliable network",
    "P_min is the parameter count from which on every network stays near the "
    "plateau with little variance over seeds; P_learn the count at which seeds "
    "stop failing. Where the grid does not reach below or above, there is no "
    "number. {accuracy} draws P_min as a line with its interval as a band.",
    "minimal-parameters",
  ),
  "convergence": Section(
    "How networks converge",
    "Every curve passes through up to four phases.",
    "convergence-phases",
  ),
  "pruning": Section(
    "How much can be pruned",
    "Sparsity is free while the accuracy lost stays below the margin. Compared "
    "networks have seen equal steps.",
    "pruning-phases",
  ),
  "quantization": Section(
    "How few bits suffice",
    "Damage is the accuracy at 32 bits minus that at fewer, seed by seed.",
    "quantization-damage",
  ),
  "together": Section(
    "What fits into so many bytes",
    "Sparsity and few bits together, and what to use under a budget.",
    "guidance",
  ),
  "claims": Section(
    "The claims",
    "Each claim of arXiv 2601.17987 as one effect with an interval. Undecided "
    "means that these records cannot tell; a contradiction is a finding.",
    "claims",
  ),
  "engine": Section(
    "What it cost to compute",
    "Networks were trained in packs, each by one compiled program.",
    "",
  ),
}
