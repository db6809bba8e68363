"""scikit-learn's digits: 1,797 real 8x8 images of handwritten digits.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits,
UCI Machine Learning Repository, 1998 (its test part), values 0-16.
"""

import importlib.metadata

import numpy as np

from minarch_jax.data import cache, sources

_INFO = sources.Info(
  (8, 8, 1),
  10,
  1797,
  0,
  "digits has no official test split: a fixed stratified 20 % of its images",
)


def _describe(name: str, data_dir: str | None) -> sources.Info:
  return _INFO


def _read(name: str, data_dir: str | None) -> sources.Raw:
  # scikit-learn takes longer to import than everything else here to run.
  version = importlib.metadata.version("scikit-learn")
  return cache.fetch(f"digits-{version}", _import)


def _import() -> sources.Raw:
  from sklearn import datasets

  x, y = datasets.load_digits(return_X_y=True)
  x = np.asarray(x, np.uint8).reshape(-1, *_INFO.input_shape)
  return sources.raw(x, np.asarray(y, np.int32))


SOURCE = sources.Source(_describe, _read)
