"""Studies of networks that share images of unequal difficulty.

Every image has a difficulty that all networks feel, every network its own
opinion of each image and its own skill: a probit model, so that the accuracy
of new seeds on new images is known.
"""

import dataclasses

import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class Population:
  """Networks, dense and then pruned or rounded, on the probit scale.

  Defaults are such that errors agree between seeds as those of MLPs on
  scikit-learn's digits do (measured: correlation 0.44 to 0.73 of the misses of
  two seeds, 0 to 0.15 of what they lose by pruning).

  Attributes:
    skill: how far the mean network is beyond the mean image.
    spread: deviation of skill over seeds.
    shared: share of the variance of an image's difficulty common to all seeds.
    loss: skill lost by pruning or rounding.
    churn: deviation of what it changes at single images.
    common: share of the variance of `churn` that all seeds have in common.
  """

  skill: float = 1.65
  spread: float = 0.03
  shared: float = 0.85
  loss: float = 0.1
  churn: float = 0.25
  common: float = 0.3

  def accuracy(self) -> float:
    """True mean accuracy of dense networks."""
    return float(special.ndtr(self.skill / np.sqrt(1 + self.spread**2)))

  def drop(self) -> float:
    """True mean of the accuracy lost."""
    deviation = np.sqrt(1 + self.spread**2 + self.churn**2)
    return self.accuracy() - float(
      special.ndtr((self.skill - self.loss) / deviation)
    )

  def play(
    self,
    studies: int,
    seeds: int,
    images: int,
    rng: np.random.Generator,
    folds: int = 1,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Hits before and after, bool [studies, seeds, images of a fold].

    Seed s sees the images of fold s mod `folds`.
    """
    fold = np.arange(seeds) % folds
    dense, after = [], []
    for _ in range(studies):

      def mixed(share):
        both = (
          rng.normal(size=(folds, images)),
          rng.normal(size=(seeds, images)),
        )
        return np.sqrt(share) * both[0][fold] + np.sqrt(1 - share) * both[1]

      margin = self.skill + self.spread * rng.normal(size=(seeds, 1))
      margin = margin + mixed(self.shared)
      cut = margin - self.loss + self.churn * mixed(self.common)
      dense.append(margin > 0)
      after.append(cut > 0)
    return np.array(dense), np.array(after)
