"""The summary is short, and chooses on validation."""

import polars as pl

from minarch_jax import analysis
from minarch_jax.config import Config
from tests.analysis import simulated

CONFIG = Config(num_bootstrap=300)


def test_summary_is_short_and_says_the_numbers():
  records = simulated.simulate(datasets=("easy",), plateaus=(0.97,))
  lines = analysis.summary(records, CONFIG)
  assert 5 <= len(lines) <= 11
  assert lines[0].table == "guidance"
  text = "\n".join(line.text for line in lines)
  for scope in ("global", "layerwise"):
    line = next(x.text for x in lines if f"by magnitude, {scope}" in x.text)
    assert "[" in line and "Shown to cost less" in line
    # The world's redundancy is 55 % at depth 1 and 10 % more per doubling.
    assert 0.5 < float(line.split("stable ")[1].split("%")[0]) / 100 < 0.75
  for word in ("test images", "P_min", "weights", "4 bits", "claims"):
    assert word in text
  one = analysis.summary(
    simulated.simulate(num_seeds=1, **simulated.LEAN), CONFIG
  )
  assert any("one seed" in line.text for line in one)


def test_summary_chooses_on_validation():
  records = simulated.handmade({100: [0.9, 0.91], 1000: [0.95, 0.94]})
  swapped = records._replace(
    networks=records.networks.with_columns(
      test_accuracy=1 - pl.col("val_accuracy")
    )
  )
  lines = analysis.summary(swapped, CONFIG)
  (best,) = (line.text for line in lines if line.table == "selected")
  assert "dnn:1000 5.50%" in best


def test_the_answer_comes_first_also_where_there_is_none():
  found = analysis.guidance(simulated.simulate(**simulated.LEAN), CONFIG)
  lines = analysis.summary(simulated.simulate(**simulated.LEAN), CONFIG)
  first = found.row(0, named=True)
  assert f"{first['bytes']:,} bytes" in lines[0].text
  assert first["architecture"] in lines[0].text
  reached = "points short" if first["shortfall"] else "The smallest that stays"
  assert reached in lines[0].text
  one = simulated.simulate(num_seeds=1, **simulated.LEAN)
  assert "Nothing can be recommended: " in analysis.summary(one, CONFIG)[0].text
