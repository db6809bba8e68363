"""Trees of every kind that users have, and what NumPy would make of them.

A kind is a tree and, for each of its weights, what the axes are: one letter
each, i(nput), o(utput), s(tacked). The reference below knows nothing of the
package: it is told the axes.
"""

import collections
import dataclasses
import functools
import importlib.util
from typing import NamedTuple

from flax import linen as nn
from flax import nnx
from flax.core import freeze
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from minarch_jax import leaves


def draw(*shape, dtype=np.float32, seed=0):
  """No two magnitudes are alike, in bfloat16 neither."""
  size = int(np.prod(shape))
  rng = np.random.default_rng([seed, *shape])
  values = 2.0 ** rng.uniform(-3, 0, size) * rng.choice([-1, 1], size)
  return jnp.asarray(values.reshape(shape), dtype)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["kernel", "bias"],
  meta_fields=["size"],
)
@dataclasses.dataclass
class Dense:
  kernel: object
  bias: object
  size: int = 3


Pair = collections.namedtuple("Pair", "kernel bias")


def dense(*shape, seed=0, dtype=np.float32):
  return {
    "kernel": draw(*shape, seed=seed, dtype=dtype),
    "bias": draw(shape[-1], seed=seed, dtype=dtype),
  }


def module():
  """An NNX module with all kinds of variables."""
  rngs = nnx.Rngs(0)
  return nnx.Sequential(
    nnx.Linear(4, 8, rngs=rngs),
    nnx.BatchNorm(8, rngs=rngs),
    nnx.Dropout(0.1, rngs=rngs),
    nnx.Linear(8, 4, rngs=rngs),
  )


def extras():
  """Leaves that hold no numbers, or none to train."""
  return {
    "layer": dense(8, 4),
    "activation": jnp.tanh,
    "key": jax.random.key(0),
    "raw_key": jax.random.key_data(jax.random.key(0)),
    "steps": 3,
    "rate": 0.5,
    "name": "net",
    "nothing": None,
  }


# name -> (tree, {weight: its axes}).
KINDS = {
  "dictionary": (
    lambda: {"a": dense(8, 4), "b": dense(4, 4, seed=1)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "frozen": (lambda: freeze({"a": dense(8, 4)}), {"a/kernel": "io"}),
  "list": (
    lambda: [dense(8, 4), (dense(4, 8), dense(8, 8))],
    {"0/kernel": "io", "1/0/kernel": "io", "1/1/kernel": "io"},
  ),
  "named tuple": (
    lambda: {"a": Pair(draw(8, 4), draw(4)), "b": Pair(draw(4, 4), None)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "dataclass": (
    lambda: [Dense(draw(8, 4), draw(4)), Dense(draw(4, 4), draw(4))],
    {"0/kernel": "io", "1/kernel": "io"},
  ),
  "bfloat16": (
    lambda: {"a": dense(8, 4, dtype=jnp.bfloat16), "b": dense(4, 4)},
    {"a/kernel": "io", "b/kernel": "io"},
  ),
  "float16": (lambda: dense(8, 4, dtype=jnp.float16), {"kernel": "io"}),
  "other leaves": (extras, {"layer/kernel": "io"}),
  "nnx state": (
    lambda: nnx.state(module()),
    {"layers/0/kernel": "io", "layers/3/kernel": "io"},
  ),
  "nnx parameters": (
    lambda: nnx.state(module(), nnx.Param),
    {"layers/0/kernel": "io", "layers/3/kernel": "io"},
  ),
}

# Trees of Equinox and Haiku, as these libraries would make them.


class Linear(NamedTuple):
  weight: object
  bias: object


def equinox():
  return {
    "layers": [
      Linear(draw(8, 4), draw(8)),
      Linear(draw(5, 4, 3, 3), draw(5, 1, 1)),
    ],
    "stacked": Linear(draw(3, 8, 4), draw(3, 8)),
    "embedding": {"weight": draw(12, 4)},
    "activation": jnp.tanh,
  }


def linen(model, *inputs):
  made = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
  shapes, treedef = jax.tree.flatten(made)
  return treedef.unflatten(
    [draw(*leaf.shape, seed=i) for i, leaf in enumerate(shapes)]
  )


class Images(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), use_bias=False)(x)
    x = nn.BatchNorm(use_running_average=True)(x)
    x = nn.Conv(8, (3, 2))(x)
    x = nn.Conv(4, (3,), use_bias=False)(x.mean(1))
    return nn.Dense(4)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
  bias: bool = True

  @nn.compact
  def __call__(self, x, _):
    attend = nn.MultiHeadDotProductAttention(2, use_bias=self.bias)
    x = x + attend(nn.LayerNorm()(x))
    return x + nn.Dense(8, use_bias=self.bias)(x), None


class Text(nn.Module):
  scanned: bool
  bias: bool = True

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(12, 8)(tokens)
    if self.scanned:
      stack = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=3,
      )
      return stack(self.bias)(x, None)[0]
    return Block(self.bias)(x, None)[0]


TOKENS = jax.ShapeDtypeStruct((2, 5), np.int32)
ATTENTION = "MultiHeadDotProductAttention_0"


def text_axes(block, stacked=""):
  return {
    "Embed_0/embedding": "io",
    f"{block}/Dense_0/kernel": stacked + "io",
    f"{block}/{ATTENTION}/query/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/key/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/value/kernel": stacked + "ioo",
    f"{block}/{ATTENTION}/out/kernel": stacked + "iio",
  }


KINDS |= {
  "convolutions": (
    lambda: linen(Images(), jax.ShapeDtypeStruct((2, 8, 8, 4), np.float32)),
    {
      "Conv_0/kernel": "iiio",
      "Conv_1/kernel": "iiio",
      "Conv_2/kernel": "iio",
      "Dense_0/kernel": "io",
    },
  ),
  "attention": (lambda: linen(Text(False), TOKENS), text_axes("Block_0")),
  "scanned": (
    lambda: linen(Text(True), TOKENS),
    text_axes("ScanBlock_0", "s"),
  ),
  "scanned without biases": (
    lambda: linen(Text(True, False), TOKENS),
    text_axes("ScanBlock_0", "s"),
  ),
  "recurrent": (
    lambda: linen(
      nn.RNN(nn.OptimizedLSTMCell(4)),
      jax.ShapeDtypeStruct((2, 5, 8), np.float32),
    ),
    {f"cell/{a}{b}/kernel": "io" for a in "ih" for b in "ifgo"},
  ),
  "projections": (
    lambda: {
      "q_proj": {"kernel": draw(8, 2, 4)},
      "to_q": {"kernel": draw(4, 2, 8), "bias": draw(2, 8)},
    },
    {"q_proj/kernel": "ioo", "to_q/kernel": "ioo"},
  ),
  "nnx attention": (
    lambda: nnx.state(
      nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), nnx.Param
    ),
    {
      **dict.fromkeys(("query/kernel", "key/kernel", "value/kernel"), "ioo"),
      "out/kernel": "iio",
    },
  ),
  "nnx layers mapped": (
    lambda: nnx.state(
      nnx.vmap(lambda key: nnx.Linear(8, 4, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), 3)
      )
    ),
    {"kernel": "sio"},
  ),
  "equinox": (
    equinox,
    {
      "layers/0/weight": "oi",
      "layers/1/weight": "oiii",
      "stacked/weight": "soi",
      "embedding/weight": "io",
    },
  ),
  "haiku": (
    lambda: {
      "mlp/~/linear_0": {"w": draw(8, 4), "b": draw(4)},
      "mlp/~/stack": {"w": draw(2, 4, 8), "b": draw(2, 8)},
      "conv2_d": {"w": draw(3, 3, 4, 5), "b": draw(5)},
      "layer_norm": {"scale": draw(4), "offset": draw(4)},
    },
    {
      "mlp/~/linear_0/w": "io",
      "mlp/~/stack/w": "sio",
      "conv2_d/w": "iiio",
    },
  ),
}


def sharded():
  """Two layers that lie on several devices."""
  mesh = jax.make_mesh(
    (8,), ("units",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  places = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("units"))
  tree = {"a": dense(8, 16), "b": dense(16, 8)}
  return jax.tree.map(lambda leaf: jax.device_put(leaf, places), tree)


KINDS["sharded"] = (sharded, {"a/kernel": "io", "b/kernel": "io"})


def equinox_modules():
  import equinox as eqx

  keys = iter(jax.random.split(jax.random.key(0), 5))
  return {
    "mlp": eqx.nn.MLP(4, 8, 8, 1, key=next(keys)),
    "attend": eqx.nn.MultiheadAttention(2, 8, key=next(keys)),
    "conv": eqx.nn.Conv2d(4, 8, 3, key=next(keys)),
    "norm": eqx.nn.LayerNorm((4, 8)),
    "embed": eqx.nn.Embedding(12, 8, key=next(keys)),
  }


if importlib.util.find_spec("equinox"):
  projections = ("query", "key", "value", "output")
  KINDS["equinox modules"] = (
    equinox_modules,
    {
      **{f"mlp/layers/{i}/weight": "oi" for i in range(2)},
      **{f"attend/{name}_proj/weight": "oi" for name in projections},
      "conv/weight": "oiii",
      "embed/weight": "io",
    },
  )

# With leaves that no optimizer takes.
NOT_TRAINED = ("other leaves", "nnx state", "equinox", "equinox modules")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_trained = pytest.mark.parametrize(
  "kind", [kind for kind in KINDS if kind not in NOT_TRAINED]
)


@functools.cache
def kind_of(name):
  make, axes = KINDS[name]
  return make(), axes


def weights_of(tree, axes):
  named = {"/".join(path): leaf for path, leaf in leaves.named(tree)}
  return {name: named[name] for name in axes}


# --- the reference ------------------------------------------------------------


def sharing(shape, axes, granularity, layer=""):
  """Lists the entries, by number, that a granularity treats as one.

  "tensor": all of a stacked layer; "channel": the inputs of an output;
  "group:4": each four of these, the last axis the slowest; those of a layer
  "out" within a head.
  """
  where = {a: [i for i, b in enumerate(axes) if a == b] for a in "soi"}
  inner, outer = where["i"], where["s"] + where["o"]
  if granularity == "tensor":
    inner, outer = where["i"] + where["o"], where["s"]
  elif granularity.startswith("group"):
    if layer == "out" and len(inner) == 2:
      outer, inner = inner[:1] + outer, inner[1:]
    inner = inner[-1:] + inner[:-1]
  numbers = np.arange(np.prod(shape)).reshape(shape)
  size = int(np.prod([shape[i] for i in inner]))
  rows = numbers.transpose(outer + inner).reshape(-1, size)
  if granularity.startswith("group"):
    step = int(granularity.partition(":")[2])
    return [row[i : i + step] for row in rows for i in range(0, size, step)]
  return list(rows)


def largest(scores, sparsity, least=0):
  """Marks the largest of a pool."""
  count = max(round((1 - sparsity) * scores.size), least)
  marks = np.zeros(scores.size, bool)
  marks[np.argsort(scores, kind="stable")[scores.size - count :]] = True
  return marks


def pruned(weights, axes, how, sparsity):
  """Masks by name: "global", "layerwise", "nm:4" or "block:2x2"."""
  scores = {
    name: np.abs(np.asarray(w, np.float32)) for name, w in weights.items()
  }
  masks = {name: np.zeros(s.size, bool) for name, s in scores.items()}
  if how == "global":
    together = np.concatenate([s.ravel() for s in scores.values()])
    ends = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = np.split(largest(together, sparsity), ends)
    masks = dict(zip(scores, parts, strict=True))
  elif how == "block:2x2":
    places, means = [], []
    for name, s in scores.items():
      numbers = np.arange(s.size).reshape(-1, *s.shape[-2:])
      for i, row, column in np.ndindex(
        len(numbers), -(-s.shape[-2] // 2), -(-s.shape[-1] // 2)
      ):
        corner = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
        entries = numbers[i][corner].ravel()
        places.append((name, entries))
        means.append(s.ravel()[entries].mean(dtype=np.float64))
    means = np.array(means, np.float32)
    for (name, entries), kept in zip(
      places, largest(means, sparsity), strict=True
    ):
      masks[name][entries] = kept
  else:
    by = "tensor" if how == "layerwise" else "channel"
    for name, s in scores.items():
      for row in sharing(s.shape, axes[name], by):
        pools = [row] if how == "layerwise" else row.reshape(-1, 4)
        for pool in pools:
          masks[name][pool] = largest(s.ravel()[pool], sparsity, 1)
  return {name: m.reshape(scores[name].shape) for name, m in masks.items()}


# Dettmers et al. 2023, arXiv 2305.14314, appendix E.
NF4 = np.array(
  [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
  ],
  np.float32,
)


def rounded(weight, axes, format, granularity, layer=""):
  """Codes of four bits, and the numbers they stand for."""
  flat = np.asarray(weight, np.float32).ravel()
  codes, numbers = np.zeros(flat.size, np.int8), np.zeros_like(flat)
  one = np.float32(1)
  for row in sharing(weight.shape, axes, granularity, layer):
    w = flat[row]
    if format == "int4":
      scale = np.abs(w).max() / np.float32(7)
      codes[row] = np.round(w * (one / scale))
      numbers[row] = codes[row] * scale
    elif format == "uint4":
      low, high = min(w.min(), 0 * one), max(w.max(), 0 * one)
      scale = (high - low) / np.float32(15)
      zero = np.floor(np.float32(-8) - low / scale + np.float32(0.5 + 2**-10))
      zero = np.clip(zero, -8, 7)
      codes[row] = np.clip(np.round(w * (one / scale)) + zero, -8, 7)
      numbers[row] = (codes[row] - zero) * scale
    else:
      scale = np.abs(w).max()
      steps = w * (one / scale)
      codes[row] = np.abs(steps[:, None] - NF4).argmin(1)
      numbers[row] = NF4[codes[row]] * scale
  shape = weight.shape
  return codes.reshape(shape), numbers.reshape(shape).astype(weight.dtype)


# --- laws ---------------------------------------------------------------------


def assert_alike(a, b):
  """The same structure, and each leaf of the same type."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if leaves.is_array(x):
      assert isinstance(x, jax.Array) == isinstance(y, jax.Array)
      assert x.dtype == y.dtype and x.shape == y.shape
    else:
      assert type(x) is type(y)


def assert_others_left_alone(changed, tree, weights):
  for (path, a), (_, b) in zip(
    leaves.named(changed), leaves.named(tree), strict=True
  ):
    if "/".join(path) not in weights:
      if leaves.is_array(b):
        np.testing.assert_array_equal(a, b)
      else:
        assert a is b or np.all(a == b)
