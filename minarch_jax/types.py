"""The nouns of the project: batches, data sets, models, states, tensors."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Params = Any  # a pytree of arrays; leaves are named by their path
Masks = Any  # the structure of Params; 1 = kept, scalar 1 = never pruned
Sizes = dict[str, Array]  # true size of each unit axis, int32 scalars


def module_of(*values: Any) -> Any:
  """Returns numpy for host arrays and numbers, else jax.numpy."""
  return jnp if any(isinstance(v, jax.Array) for v in values) else np


class Batch(NamedTuple):
  """Images and labels of one split or minibatch.

  Attributes:
    x: float32 [N, H, W, C], standardised with training statistics.
    y: int32 [N], class indices.
  """

  x: Array
  y: Array


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Three splits under one protocol.

  With several folds every seed has a validation split of its own: seed s
  validates on fold s mod F and trains on all other images. `train` and
  `validation` are then the splits of seed 0.

  Attributes:
    name: as flags and tables name it.
    train, validation, test: the splits.
    num_classes: number of classes.
    fingerprint: a hash of the bytes of all splits as delivered; it enters the
      identity of every record.
    test_note: what the test split is when it is not the data set's official
      one ('' when it is).
    folds: int [N_train], the fold 1 to F - 1 of every training image, in
      rising order; None where there is one fold, which is `validation`.
  """

  name: str
  train: Batch
  validation: Batch
  test: Batch
  num_classes: int
  fingerprint: str
  test_note: str = ""
  folds: np.ndarray | None = None

  @property
  def num_folds(self) -> int:
    return 1 if self.folds is None else int(self.folds.max()) + 1

  def of_seed(self, seed: int) -> tuple[Batch, Batch]:
    """Returns what a seed trains on and what it validates on."""
    fold = seed % self.num_folds
    if self.folds is None or not fold:
      return self.train, self.validation
    own = self.folds == fold
    rest, held = (
      Batch(*(np.asarray(part)[where] for part in self.train))
      for where in (~own, own)
    )
    pairs = zip(rest, self.validation, strict=True)
    return Batch(*(np.concatenate(pair) for pair in pairs)), held

  @property
  def input_shape(self) -> tuple[int, int, int]:
    height, width, channels = self.train.x.shape[1:]
    return height, width, channels


class Model(NamedTuple):
  """A network as two pure functions.

  `init(key, sizes) -> params` draws parameters of the parent's shapes whose
  entries outside `sizes` are exactly zero; `apply(params, x, sizes) -> logits`
  maps [B, H, W, C] to [B, num_classes]. `sizes` are the member's true sizes.
  """

  init: Callable[[jax.Array, Sizes], Params]
  apply: Callable[[Params, Array, Sizes], jax.Array]


Tap = Callable[[str, jax.Array], jax.Array]
# Called with (leaf name, layer input) on what each kernel is multiplied with;
# returns what is multiplied.


def record_inputs(
  apply: Callable[..., Any], params: Params, x: Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs a network once and keeps what each kernel is multiplied with.

  Args:
    apply: `apply(params, x, tap=tap) -> logits`, which calls
      `y = tap(name, y)` on the input of every kernel; a `Model.apply` with its
      sizes bound.
    params: one network.
    x: images [B, ...].

  Returns:
    The logits, and inputs by leaf name ("hidden_0/kernel"), [B, ..., *inputs].

  Raises:
    ValueError: the network shows no input.
  """
  seen: dict[str, jax.Array] = {}

  def tap(name: str, y: jax.Array) -> jax.Array:
    before = seen.get(name)
    if before is not None and before.shape[1:] != y.shape[1:]:
      raise ValueError(
        f"{name!r} is used on inputs of shapes {before.shape} and {y.shape}; "
        "give the uses names, and weights, of their own"
      )
    # A layer that is used twice sees both of its inputs.
    seen[name] = y if before is None else jnp.concatenate([before, y])
    return y

  hint = (
    "of a module of Flax or Equinox take apply=ma.tapped(module); in another "
    "call y = tap(name, y) on what each kernel is multiplied with, named as "
    "its leaf ('hidden_0/kernel')"
  )
  try:
    logits = apply(params, x, tap=tap)
  except TypeError as error:
    if "'tap'" not in str(error):
      raise
    raise ValueError(
      f"apply takes no tap=, so no layer's input is known; {hint}"
    ) from error
  if not seen:
    raise ValueError(
      f"apply never called its tap, so no layer's input is known; {hint}"
    )
  return logits, seen


class Window(NamedTuple):
  """How a convolution goes over its input.

  Attributes:
    strides, dilation: of each axis.
    padding: "SAME", "VALID" or pairs for each axis; None = in a way of its own,
      or a transposed convolution.
    groups: of input channels that see outputs of their own.
    channels_first: whether the input is [B, C, ...], else [B, ..., C].
  """

  strides: tuple[int, ...]
  dilation: tuple[int, ...]
  padding: Any
  groups: int
  channels_first: bool


class TrainState(NamedTuple):
  """Everything one network's training carries from step to step."""

  params: Params
  opt_state: Any


@flax.struct.dataclass
class QTensor:
  """A quantized array: (decode(values) - zero_point) * scale ~ the original.

  For integer formats `decode` is the number itself; a table format such as
  NF4 looks it up, so `quantization.dequantize` is the way back for all. The
  law: inside the calibrated range the error is at most scale * gap / 2, with
  gap = 1 for integers; a number outside becomes the nearest end. Under
  symmetric formats 0 is exactly 0.

  Attributes:
    values: codes, the shape of the original: int8 for formats of up to 8
      bits, or the format's own narrow float type. Where they are packed, the
      bytes of `quantization.packing`, uint8 [..., bytes].
    scale: float32, broadcastable to `values` (per tensor, per channel);
      [groups, outputs...] for groups; None for unscaled float formats.
    zero_point: int8 code of the real number 0, shaped like `scale`; None for
      symmetric formats.
    bits: bits per stored value, static.
    layout: static `quantization.tensors.Coding`: the format's name, which
      entries share a scale, and the original's type.
    packed: static shape of one original whose codes are packed; None where
      each code is held as a number of its own.
  """

  values: Any
  scale: Any
  zero_point: Any = None
  bits: Any = flax.struct.field(pytree_node=False, default=8)
  layout: Any = flax.struct.field(pytree_node=False, default=None)
  packed: Any = flax.struct.field(pytree_node=False, default=None)

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the original, after the axes that it is mapped over."""
    if self.packed is None:
      return np.shape(self.values)
    return (*np.shape(self.values)[:-1], *self.packed)

  def dequantize(self, dtype: Any = None) -> jax.Array:
    """Returns the numbers it stands for, in the original's type or another."""
    return self.layout.dequantize(self, dtype)

  def pack(self) -> "QTensor":
    """Holds each code in its bits alone, two of 4 bits in a byte.

    Codes of 8 bits and more stay as they are, and so do binary ones, whose 0
    has no code of one bit. For one tensor; map over seeds with `jax.vmap`.
    """
    return self.layout.pack(self)

  def unpack(self) -> "QTensor":
    """Inverts `pack`."""
    return self.layout.unpack(self)


Transform = Callable[[Params], Params]
