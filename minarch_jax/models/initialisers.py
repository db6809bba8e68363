"""Laws of initial values: the variance of a kernel, and its shape.

Fans are those of the member, never of its parent. Every value comes from one
N(0, 1) draw at its coordinate, so all laws of one study start from the same
draws. Embeddings are normal with deviation 0.02 under every law (Dosovitskiy et
al. 2021); scales are 1; biases are 0 unless a law says otherwise.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

Array = Any


class Initialiser(NamedTuple):
  """A law of initial values.

  Attributes:
    variance: of a kernel's entries, from (fan-in, fan-out, gain); the gain is 2
      before a ReLU and 1 elsewhere.
    uniform: whether values are uniform; normal otherwise.
    biases: whether biases of layers follow the law of their kernel.
  """

  variance: Callable[[Array, Array, float], Array]
  uniform: bool = False
  biases: bool = False


# He et al. 2015, arXiv 1502.01852.
HE_NORMAL = Initialiser(lambda fan_in, fan_out, gain: gain / fan_in)

# LeCun et al. 1998, Efficient BackProp; Flax's own default, but not truncated.
LECUN_NORMAL = Initialiser(lambda fan_in, fan_out, gain: 1 / fan_in)

# Glorot and Bengio 2010.
GLOROT_UNIFORM = Initialiser(
  lambda fan_in, fan_out, gain: 2 / (fan_in + fan_out), uniform=True
)

# torch.nn.Linear and Conv2d: kaiming_uniform_ with a = sqrt(5), which is
# U(-b, b) with b = 1 / sqrt(fan-in), for kernels and biases.
PYTORCH = Initialiser(
  lambda fan_in, fan_out, gain: 1 / (3 * fan_in), uniform=True, biases=True
)


def uniform(draws: Array) -> Array:
  """Turns N(0, 1) values into uniform ones of variance 1."""
  on_host = isinstance(draws, np.ndarray)
  share = special.ndtr(draws) if on_host else jax.scipy.special.ndtr(draws)
  return ((2 * share - 1) * math.sqrt(3)).astype(draws.dtype)
