"""What a user may type wrong, and the message that says so."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import architectures, pruning
from minarch_jax.architectures import Problem

SPEC = architectures.Architecture.parse("dnn:6-5").spec(Problem((2, 2, 1), 3))
PARAMS = {
  name: {
    "kernel": np.ones(shape, np.float32),
    "bias": np.zeros(shape[1], np.float32),
  }
  for name, shape in (
    ("hidden_0", (4, 6)),
    ("hidden_1", (6, 5)),
    ("output", (5, 3)),
  )
}

ERRORS = {
  "sparsity 1": (dict(sparsity=1.0), r"sparsity 1 is outside \[0, 1\)"),
  "sparsity below 0": (dict(sparsity=-0.1), "sparsity -0.1"),
  "sparsity not a number": (dict(sparsity=float("nan")), "sparsity nan"),
  "sparsity a text": (dict(sparsity="0.5"), "sparsity '0.5' is not one number"),
  "sparsity missing": (dict(sparsity=None), "sparsity None is not one number"),
  "sparsities": (dict(sparsity=np.array([0.1, 0.2])), "use|with jax.vmap"),
  "sparsity array": (dict(sparsity=jnp.float32(1.5)), "sparsity 1.5"),
  "criterion": (
    dict(criterion="magnitud"),
    "'magnitud' is not one of .*did you mean 'magnitude'",
  ),
  "scope": (dict(scope="globale"), "did you mean 'global'"),
  "scope layer": (
    dict(scope={"hidden_2": 0.5}),
    "scope names layer 'hidden_2'.*did you mean 'hidden_",
  ),
  "scope sparsity": (dict(scope={"output": 1.0}), "sparsity 1 is outside"),
  "granularity": (dict(granularity="units"), "did you mean 'unit'"),
  "granularity sizes": (dict(granularity="block:4"), "like block:4x4"),
  "granularity zero": (dict(granularity="nm:0"), "like nm:4"),
  "granularity needless": (dict(granularity="element:4"), "like element,"),
  "N:M": (
    dict(granularity="nm:4"),
    "nm:4: axis 0 of leaf 'hidden_1/kernel' has 6 entries, not a multiple of 4",
  ),
  "N:M and nothing left": (
    dict(sparsity=0.875, granularity="nm:4", exclude=["hidden_1", "output"]),
    "sparsity 0.875 would keep 0 of every 4 .*; at most 0.75 can be removed",
  ),
  "N:M and nothing left of a layer": (
    dict(
      granularity="nm:4",
      exclude=["hidden_1", "output"],
      scope={"hidden_0": 0.9},
    ),
    "sparsity 0.9 would keep 0 of every 4",
  ),
  "N:M and ERK": (
    dict(granularity="nm:2", scope="erk"),
    "use scope 'layerwise'",
  ),
  "unit": (dict(granularity="unit"), "needs spec="),
  "exclude a text": (dict(exclude="output"), r"write \['output'\]"),
  "names a text": (dict(names="kernel"), r"write \['kernel'\]"),
  "spec": (
    dict(
      spec=architectures.Architecture.parse("dnn:6").spec(Problem((2, 2, 1), 3))
    ),
    "spec: leaf 'output/bias'|spec: leaf 'output/kernel'",
  ),
  "exclude": (
    dict(exclude=["outputs"]),
    "exclude names layer 'outputs', which does not exist",
  ),
  "exclude all": (
    dict(exclude=["hidden_0", "hidden_1", "output"]),
    "every layer is excluded",
  ),
  "names": (dict(names=("w",)), "no array is named w.*hidden_0/bias"),
  "masks": (dict(masks={"hidden_0": PARAMS["hidden_0"]}), "lacks leaf"),
  "within": (
    dict(within=jax.tree.map(lambda leaf: np.ones(7, bool), PARAMS)),
    r"within: leaf 'hidden_0/bias' has shape \(7,\)",
  ),
  "rounds": (dict(rounds=0), "rounds 0 is below 1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
  arguments, message = ERRORS[name]
  arguments = {"sparsity": 0.5} | arguments
  with pytest.raises(ValueError, match=message):
    pruning.prune(PARAMS, **arguments)


@pytest.mark.parametrize("name", ERRORS)
def test_it_is_named_before_anything_compiles(name):
  arguments, message = ERRORS[name]
  arguments = {"sparsity": 0.5} | arguments
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda p: pruning.prune(p, **arguments), PARAMS)


def counts(**arguments):
  function = jax.jit(lambda p: pruning.prune(p, 0.5, spec=SPEC, **arguments))
  masks = function(PARAMS)
  return {
    name: int(masks[name]["kernel"].sum()) if masks[name]["kernel"].ndim else -1
    for name in masks
  }


def test_layers_can_be_left_out_by_name_or_place():
  assert counts(exclude=["hidden_1"], scope="layerwise") == {
    "hidden_0": 12,
    "hidden_1": -1,
    "output": 8,
  }
  assert counts(exclude=["input", "output"]) == {
    "hidden_0": -1,
    "hidden_1": 15,
    "output": -1,
  }


def test_a_dictionary_gives_each_layer_its_sparsity():
  # (1 - 0.5) 15 = 7.5 rounds to 8, the even number.
  assert counts(scope={"hidden_0": 0.75, "hidden_1/kernel": 0.9}) == {
    "hidden_0": 6,
    "hidden_1": 3,
    "output": 8,
  }


def test_layers_that_die_are_told():
  params = {n: {"kernel": np.full((2, 2), x)} for n, x in (("a", 1), ("b", 2))}
  with pytest.warns(UserWarning, match="scope='layerwise'.*: a/kernel$"):
    masks = pruning.prune(params, 0.5)
  assert not masks["a"]["kernel"].any() and masks["b"]["kernel"].all()
  # As is a layer of which nothing is left of what exists.
  within = {"a": {"kernel": np.eye(2)}, "b": {"kernel": np.zeros((2, 2))}}
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    pruning.prune(params, 0.5, scope="layerwise")
    pruning.prune(params, 0.5, within=within)
    jax.jit(lambda p: pruning.prune(p, 0.5))(params)


def test_the_hint_comes_before_a_long_list():
  many = {f"layer_{i}": {"table": np.ones((2, 2))} for i in range(50)}
  with pytest.raises(ValueError) as error:
    pruning.prune(many, 0.5)
  assert str(error.value).index("names=['table']") < 100
  with pytest.raises(ValueError) as error:
    pruning.prune(many, 0.5, names=["table"], exclude=["layr_7"])
  assert str(error.value).index("did you mean 'layer_7'") < 100


def test_other_names_can_be_pruned():
  params = {"w": np.arange(1.0, 5.0, dtype=np.float32), "b": np.zeros(2)}
  masks = pruning.prune(params, 0.5, names=("w",))
  assert masks["w"].tolist() == [False, False, True, True]
  assert masks["b"].shape == () and masks["b"]


@pytest.mark.parametrize(
  "function, keyword, hint",
  [
    (pruning.prune, "granularty", "did you mean 'granularity'"),
    (pruning.prune, "activation", "did you mean 'activations'"),
    (pruning.rank, "exlude", "did you mean 'exclude'"),
    (pruning.rank, "loss", "rank takes no argument 'loss'; it takes gran"),
  ],
)
def test_an_unknown_keyword_is_named(function, keyword, hint):
  with pytest.raises(TypeError, match=hint):
    function(
      PARAMS, 0.5 if function is pruning.prune else "global", **{keyword: 1}
    )
