"""Mixed precision: which layer gets how many bits under a byte budget."""

from collections.abc import Callable, Mapping, Sequence

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


def mixed_precision(
  evaluate: Evaluate,
  params: types.Params,
  budget: int,
  choices: Sequence[formats.Bits] = (8, 4, 2),
  granularity: str = "channel",
) -> LayerBits:
  """Gives each layer the bits that cost least under a byte budget.

  >>> budget = ma.storage_bytes(params, 4)
  >>> bits = ma.mixed_precision(lambda p: loss(p, batch), params, budget)
  >>> rounded = ma.fake_quantize(params, bits)
  >>> ma.storage_bytes(params, bits) <= budget
  True

  `sensitivity`, then `allocate`. Report the loss on networks or images that
  `evaluate` did not look at.

  Args:
    evaluate: loss of a parameter tree, called once per layer and choice.
    params: one network's parameters.
    budget, choices, granularity: as for `allocate` and `sensitivity`.

  Returns:
    {layer: format name}, the `bits` of `quantize`.

  Raises:
    ValueError: as for `sensitivity` and `allocate`.
  """
  rises = sensitivity(evaluate, params, choices, granularity)
  return allocate(rises, params, budget, granularity)
