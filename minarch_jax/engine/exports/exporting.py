"""Writes a network to one file, in the format that its ending names."""

import os
from typing import Any

from minarch_jax import records, registries
from minarch_jax.engine.exports import networks
from minarch_jax.types import Params


def export(
  path: str, network: Any, params: Params, input_shape: networks.Shape
) -> int:
  """Writes one network, pruned, quantized or compacted, for use elsewhere.

  >>> quantized = ma.quantize(params, 4)
  >>> ma.export("dnn.safetensors", architecture, quantized, (4, 4, 1))
  1105

  The ending of the path chooses the format:

  .stablehlo    a program for CPU, GPU and TPU, with its weights, quantized
                ones packed, and for any number of images; run it by
                `jax.export.deserialize(data).call(x)`
  .onnx         a graph of operators from "images" to "outputs", for any number
                of images; codes of up to 4 bits take 4, others 8
  .safetensors  the numbers alone, sparse and quantized as they are; read them
                by `ma.load_model`, or with numpy alone as README shows

  Args:
    path: of the file, which appears whole or not at all.
    network: an architecture or its text, a Flax module, or a function
      `apply(params, images)`.
    params: of one network, with QTensor leaves where it is quantized.
    input_shape: of one image.

  Returns:
    Bytes of the file, all counted.

  Raises:
    ValueError: an ending that is no format, a network that does not run on
      the parameters, or one that the format cannot hold.
    ImportError: a library is missing; names the command that installs it.
  """
  ending = os.path.splitext(path)[1].removeprefix(".")
  write = registries.find("ending", ending, registries.EXPORTS)
  data = write(networks.make_network(network, params, input_shape))
  with records.atomic(path) as temporary, open(temporary, "wb") as file:
    file.write(data)
  return len(data)
