"""Decodes stored images to the shape that a data set promises."""

import io

import numpy as np

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels
_WIDE = ("I;16", "I;16B", "I;16L", "I", "F")  # more than eight bits a channel


def pixels(stored: bytes, shape: tuple[int, ...]) -> np.ndarray:
  """Decodes an image: uint8 [H, W, C].

  An image in another mode, a grey one among coloured ones say, is converted to
  as many channels as the others have.

  Raises:
    ValueError: its size is another, or its values have more than eight bits.
  """
  from PIL import Image

  with Image.open(io.BytesIO(stored)) as image:
    mode = MODES.get(shape[2], image.mode)
    if image.mode in _WIDE:
      raise ValueError(
        f"its mode is {image.mode}, more than eight bits a channel"
      )
    if image.mode != mode:
      image = image.convert(mode)
    found = np.asarray(image)
  found = found[..., None] if found.ndim == 2 else found
  if found.shape != shape:
    raise ValueError(f"an image is {found.shape}, others are {shape}")
  return found
