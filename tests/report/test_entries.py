"""Every figure says what it shows."""

import re

import pytest

from minarch_jax import registries
from minarch_jax.report import export


@pytest.mark.parametrize("name", registries.FIGURES)
def test_every_figure_is_valid_and_says_n_interval_and_axes(name, found):
  figure = registries.FIGURES[name].draw(found)
  figure.chart.to_dict(validate=True)
  assert re.search(r"\d", figure.caption)
  assert re.search("interval|quartiles|mean", figure.caption)
  assert len(figure.rows) > 0
  svg = export.svg(name, figure)
  assert svg == export.svg(name, figure)
  assert svg.startswith("<svg") and 'aria-label="undefined' not in svg
