"""The notebooks: clean as committed, public names only, and they run."""

import ast
import inspect
import re

import nbformat
import pytest

import minarch_jax as ma
from tests.experiments import notebooks

SIZE = 'GRID = "small"'  # the line that sets the amount of work of a tour

# Runs after the last cell and prints what the test judges.
PROBE = """
import json

again = population.networks.join(
  records.networks, on=["architecture", "seed"], suffix="_study"
)
mean = sparsities.filter(sparsity=0.6).group_by("criterion").agg(
  pl.col("accuracy").mean()
)
print(json.dumps({
  "grid": len(grid),
  "seeds": NUM_SEEDS,
  "epochs": NUM_EPOCHS,
  "best": sizes["accuracy"].max(),
  "sparsity": float(ma.sparsity(masks)),
  "still_zero": bool(still_zero),
  "scored": accuracy.tolist(),
  "at_60": dict(mean.iter_rows()),
  "damage": {
    name: float((scores["32 bits"] - score).mean())
    for name, score in scores.items()
  },
  "before": [architecture.num_params(*problem), architecture.macs(*problem)],
  "after": [smaller.num_params(*problem), smaller.macs(*problem)],
  "leaves": sum(leaf.size for leaf in jax.tree.leaves(small_params)),
  "moved": float(jnp.abs(before - after).max()),
  "tables": {name: len(frame) for name, frame in records._asdict().items()},
  "both": len(again),
  "equal": bool((again["val_accuracy"] == again["val_accuracy_study"]).all()),
  "regimes": sorted(ma.regimes(records)["architecture"]),
  "minimal": ma.minimal_parameters(records)["family"].to_list(),
  "verdicts": dict(ma.claims(records).select("claim", "verdict").iter_rows()),
}))
"""


@pytest.fixture(params=notebooks.NAMES)
def committed(request):
  return notebooks.read(request.param)


def test_the_committed_file_is_valid_and_its_outputs_are_stripped(committed):
  nbformat.validate(committed)
  assert (committed.nbformat, committed.nbformat_minor) == (4, 5)
  ids = [cell.id for cell in committed.cells]
  assert len(set(ids)) == len(ids)
  for cell in committed.cells:
    assert not cell.metadata, cell.id
    if cell.cell_type == "code":
      assert cell.outputs == [] and cell.execution_count is None, cell.id


def test_every_name_of_the_package_is_public(committed):
  used = set()
  for source in notebooks.code_of(committed):
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        used |= {node.attr} if node.value.id == "ma" else set()
  for cell in committed.cells:
    if cell.cell_type == "markdown":
      used |= set(re.findall(r"`ma\.(\w+)", cell.source))
  assert used and used <= set(ma.__all__)
  found = [getattr(ma, name) for name in used]
  assert all(callable(each) or inspect.ismodule(each) for each in found)


def test_pruning_takes_the_three_lines_it_should():
  code = notebooks.code_of(notebooks.read("first_steps"))
  lines = "\n".join(code).splitlines()
  start = lines.index("masks = ma.prune(params, 0.6)")
  assert lines[start + 1 : start + 3] == [
    "params = ma.apply_masks(params, masks)",
    "tx = ma.masked(tx, masks)",
  ]


@pytest.fixture(scope="module")
def executed(tmp_path_factory, request):
  """The tour at its tiny size."""
  return notebooks.execute(
    "first_steps",
    tmp_path_factory.mktemp("notebook"),
    request.config.cache,
    PROBE,
    size=f'{SIZE} -> GRID = "tiny"',
  )


@pytest.fixture(scope="module")
def facts(executed):
  return notebooks.facts(executed)


def test_one_variable_sets_the_amount_of_work():
  code = notebooks.code_of(notebooks.read("first_steps"))
  assert "\n".join(code).count(SIZE) == 1


def test_no_cell_fails_or_warns(executed):
  notebooks.assert_silent(executed)
  assert notebooks.charts(executed) == {"chart-curves", "prune-all"}


def test_the_population_learns_and_is_the_studys(facts):
  assert facts["best"] > 0.7
  networks = facts["grid"] * facts["seeds"]
  assert facts["tables"]["networks"] == facts["both"] == networks
  assert facts["tables"]["curves"] == networks * facts["epochs"]
  assert facts["equal"]


def test_pruning_keeps_its_promises(facts):
  assert facts["sparsity"] == pytest.approx(0.6, abs=1e-3)
  assert facts["still_zero"]
  dense, pruned, dense_retrained, pruned_retrained = facts["scored"]
  assert pruned <= dense <= dense_retrained
  assert pruned < pruned_retrained
  assert facts["at_60"]["magnitude"] > facts["at_60"]["random"] + 0.1


def test_damage_is_small_at_8_bits_and_large_when_pruned_too(facts):
  damage = facts["damage"]
  assert damage["32 bits"] == 0
  assert abs(damage["8 bits"]) < 0.02
  assert damage["4 bits"] < damage["60 % pruned, 4 bits"]


def test_the_compacted_network_is_smaller_and_says_the_same(facts):
  assert facts["moved"] < 1e-5
  assert facts["leaves"] == facts["after"][0] < facts["before"][0]
  assert facts["after"][1] < facts["before"][1]


def test_records_are_analysed(facts):
  names = [str(a) for a in ma.grid("tiny", "dnn", (8, 8, 1), 10)]
  assert facts["regimes"] == sorted(names)
  assert facts["minimal"] == ["dnn"]
  known = {"supported", "contradicted", "undecided"}
  assert list(facts["verdicts"]) == [f"C{i}" for i in range(1, 9)]
  assert set(facts["verdicts"].values()) <= known
  assert facts["verdicts"]["C8"] == "undecided"
