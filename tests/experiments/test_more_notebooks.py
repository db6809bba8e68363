"""Notebooks on models, records and additions of one's own say what is so."""

import pytest

from tests.experiments import notebooks

MODEL = """
import json
print(json.dumps({
  "dense": [float(accuracy(dense)), dense_nnx],
  "pruned": [float(accuracy(pruned)), pruned_nnx],
  "retrained": [float(accuracy(retrained)), retrained_nnx],
  "sparsity": float(ma.sparsity(ma.prune(dense, 0.9))),
  "bytes": list(sizes.values()),
  "rounding": [float(before), float(after)],
  "zeros": zeros,
}))
"""

RECORDS = """
import json
print(json.dumps({
  "networks": len(networks),
  "seeds": by_size["seeds"].to_list(),
  "reached": len(reached),
  "epochs": reached["epochs"].to_list(),
  "front": [front["bytes"].to_list(), front["worst"].to_list()],
  "best": str(best),
}))
"""

EXTEND = """
import json
print(json.dumps({
  "families": population.networks["family"].unique().to_list(),
  "grid": [str(a) for a in grid],
  "scores": scores,
  "rates": table["learning_rate"].to_list(),
  "accuracy": table["accuracy"].to_list(),
  "before": before.tolist(),
  "after": after.tolist(),
  "epochs": longer.epochs,
}))
"""


@pytest.fixture
def run(tmp_path, request):
  def execute(name, probe):
    found = notebooks.execute(name, tmp_path, request.config.cache, probe)
    notebooks.assert_silent(found)
    return found, notebooks.facts(found)

  return execute


def test_a_flax_model_is_pruned_and_quantized(run):
  _, facts = run("own_model", MODEL)
  for dense, pruned, retrained in zip(
    facts["dense"], facts["pruned"], facts["retrained"], strict=True
  ):
    assert dense > 0.9 and pruned < retrained and retrained > dense - 0.05
  assert facts["sparsity"] == pytest.approx(0.9, abs=1e-3)
  whole, *small = facts["bytes"]
  assert small == sorted(small, reverse=True) and small[0] < whole / 10
  assert facts["rounding"][0] < facts["rounding"][1]
  assert facts["zeros"] > 0.7


def test_records_are_read_and_drawn(run):
  found, facts = run("records", RECORDS)
  assert notebooks.charts(found) == {"draw", "pareto-figure"}
  assert facts["networks"] == facts["reached"] == sum(facts["seeds"])
  assert all(1 <= epochs <= 10 for epochs in facts["epochs"])
  for values in facts["front"]:
    assert len(values) > 1 and values == sorted(values)
  assert facts["best"]


def test_additions_are_known_and_a_trainer_is_swept(run):
  _, facts = run("extend", EXTEND)
  assert facts["families"] == ["bottleneck"]
  assert facts["grid"] == ["bottleneck:16-4-16", "bottleneck:32-8-32"]
  one, other = facts["scores"].values()
  assert one != other
  assert facts["rates"] == pytest.approx([1e-3, 1e-2, 1e-1])
  assert max(facts["accuracy"]) > 0.8
  assert len(facts["before"]) == len(facts["after"]) == 4
  assert min(facts["before"]) > 0.7 and min(facts["after"]) > 0.5
  assert facts["epochs"] == 20
