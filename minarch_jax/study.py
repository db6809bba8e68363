"""The straight line: sweep, prune and quantize, report.

The only module that knows the order of things. Each stage returns at once for
what the results directory already holds, so a study that was interrupted goes
on where it stopped, and any stage runs alone on what an earlier one left.
"""


# --- training ----------------------------------------------------------------


# --- compression -------------------------------------------------------------
