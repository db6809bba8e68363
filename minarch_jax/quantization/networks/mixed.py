"""Mixed precision: which layer gets how many bits under a byte budget."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from minarch_jax import types
from minarch_jax.quantization import formats, storage, trees

# A tree of float parameters -> its loss; lower is better. Average over the
# seeds that the choice may look at, and no others.
Evaluate = Callable[[types.Params], float]
LayerBits = dict[str, formats.Bits]  # "path/to/kernel" -> width or format


def sensitivity(
  evaluate: Evaluate,
  params: types.Params,
  choices: Sequence[formats.Bits],
  granularity: str = "channel",
) -> dict[str, dict[str, float]]:
  """Measures how much the loss rises when one layer alone is quantized.

  Args:
    evaluate: loss of a parameter tree, called once per layer and choice.
    params: one network's parameters.
    choices: widths or formats.
    granularity: as for `quantize`.

  Returns:
    {layer: {format name: rise of the loss}}.

  Raises:
    ValueError: as for `quantize`; a loss that is not finite without
      quantization.
  """
  whole = _finite(evaluate(params))
  names = trees.weight_names(params)
  kept = dict.fromkeys(names, "float32")
  rises: dict[str, dict[str, float]] = {}
  for layer in names:
    rises[layer] = {}
    for choice in map(formats.name_of, choices):
      tree = trees.fake_quantize(params, kept | {layer: choice}, granularity)
      rises[layer][choice] = float(evaluate(tree)) - whole
  return rises


def _finite(loss: float) -> float:
  if not np.isfinite(loss):
    raise ValueError(
      f"the loss without quantization is {loss}; leave diverged networks out"
    )
  return float(loss)


def allocate(
  rises: Mapping[str, Mapping[str, float]],
  params: types.Params,
  budget: int,
  granularity: str = "channel",
) -> LayerBits:
  """Chooses bits per layer greedily until the model fits the budget.

  Every layer starts at its widest format; then, one step at a time, the layer
  and narrower format with the least additional loss per byte saved is taken,
  on the assumption that the layers' losses add.

  Args:
    rises: from `sensitivity`.
    params: arrays or shapes of the network.
    budget: bytes of the stored model, as `storage_bytes` counts them.
    granularity: as for `quantize`.

  Returns:
    {layer: format name}, the `bits` of `quantize`.

  Raises:
    ValueError: not even the narrowest formats fit.
  """

  def size(bits):
    return storage.storage_bytes(params, bits, granularity)

  def narrower(bits):
    """Every (loss per byte, layer, format) that saves bytes."""
    for layer, costs in rises.items():
      for choice, rise in costs.items():
        saved = size(bits) - size({**bits, layer: choice})
        if saved > 0:
          extra = max(rise, 0.0) - max(costs[bits[layer]], 0.0)
          yield extra / saved, layer, choice

  bits = {
    layer: max(costs, key=lambda name: formats.FORMATS[name].bits)
    for layer, costs in rises.items()
  }
  while size(bits) > budget:
    options = list(narrower(bits))
    if not options:
      raise ValueError(
        f"a budget of {budget} bytes is below the {size(bits)} that the "
        "narrowest of the formats take; allow narrower ones or more bytes"
      )
    _, layer, choice = min(options)
    bits[layer] = choice
  return bits


class Validated(NamedTuple):
  """An allocation, and the rise of the loss with it on each network.

  Attributes:
    bits: {layer: format name}.
    bytes: of the stored model.
    chosen_on: [K] networks that the choice looked at.
    held_out: [S - K] networks that it did not: the figure to report.
  """

  bits: LayerBits
  bytes: int
  chosen_on: np.ndarray
  held_out: np.ndarray


def validate(
  evaluate: Evaluate,
  params: types.Params,
  choices: Sequence[formats.Bits],
  budget: int,
  num_choosing: int,
  granularity: str = "channel",
) -> Validated:
  """Allocates bits on some seeds and measures the loss on the others.

  Args:
    evaluate: loss of one network.
    params: networks of one architecture, a leading axis of seeds.
    choices, budget, granularity: as for `sensitivity` and `allocate`.
    num_choosing: how many seeds, the first ones, the choice looks at.

  Raises:
    ValueError: no seeds to choose on or none held out; otherwise as
      `sensitivity` and `allocate`.
  """
  count = jax.tree.leaves(params)[0].shape[0]
  if not 0 < num_choosing < count:
    raise ValueError(
      f"num_choosing {num_choosing} of {count} seeds leaves none to choose on "
      "or none held out"
    )
  networks = [
    jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)
  ]
  each = [
    sensitivity(evaluate, network, choices, granularity)
    for network in networks[:num_choosing]
  ]
  rises = {
    layer: {
      name: float(np.mean([one[layer][name] for one in each])) for name in costs
    }
    for layer, costs in each[0].items()
  }
  bits = allocate(rises, networks[0], budget, granularity)
  extra = np.array(
    [
      float(evaluate(trees.fake_quantize(network, bits, granularity)))
      - _finite(evaluate(network))
      for network in networks
    ]
  )
  size = storage.storage_bytes(networks[0], bits, granularity)
  return Validated(bits, size, extra[:num_choosing], extra[num_choosing:])
