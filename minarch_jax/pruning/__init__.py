"""Pruning of any parameter tree: score, rank, cut, keep zero.

Four independent choices: which weights (`CRITERIA`), in what shape
(`GRANULARITIES`), how much where (`SCOPES`) and when (`SCHEDULES`). Every
function works on one tree and maps over seeds and networks with `jax.vmap`.
"""

from minarch_jax.pruning.compaction import compact as compact
from minarch_jax.pruning.controls import shuffled as shuffled
from minarch_jax.pruning.controls import small_dense as small_dense
from minarch_jax.pruning.counting import kept_count as kept_count
from minarch_jax.pruning.criteria import Context as Context
from minarch_jax.pruning.criteria import CRITERIA as CRITERIA
from minarch_jax.pruning.criteria import Criterion as Criterion
from minarch_jax.pruning.dynamic import rigl as rigl
from minarch_jax.pruning.dynamic import sparse_evolution as sparse_evolution
from minarch_jax.pruning.gradients import (
  accumulate_movement as accumulate_movement,
)
from minarch_jax.pruning.granularity import GRANULARITIES as GRANULARITIES
from minarch_jax.pruning.masks import apply_masks as apply_masks
from minarch_jax.pruning.masks import count as count
from minarch_jax.pruning.masks import dead_layers as dead_layers
from minarch_jax.pruning.masks import masked as masked
from minarch_jax.pruning.masks import sparsity as sparsity
from minarch_jax.pruning.oneshot import prune as prune
from minarch_jax.pruning.ranking import check as check
from minarch_jax.pruning.ranking import masks_at as masks_at
from minarch_jax.pruning.ranking import rank as rank
from minarch_jax.pruning.ranking import Ranking as Ranking
from minarch_jax.pruning.schedules import dynamic_sparse as dynamic_sparse
from minarch_jax.pruning.schedules import gradual as gradual
from minarch_jax.pruning.schedules import iterative as iterative
from minarch_jax.pruning.schedules import lottery as lottery
from minarch_jax.pruning.schedules import SCHEDULES as SCHEDULES
from minarch_jax.pruning.scopes import SCOPES as SCOPES
from minarch_jax.pruning.sensitivity import curves as curves
from minarch_jax.pruning.sensitivity import jaccard as jaccard
from minarch_jax.pruning.sensitivity import (
  layer_sensitivity as layer_sensitivity,
)
from minarch_jax.pruning.sensitivity import overlaps as overlaps
