"""The state of training: plain nested dicts in a dataclass."""

import dataclasses
from typing import Any

import jax

Tree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that changes while training.

  Attributes:
    step: int32 scalar, updates seen.
    params: network or loss -> its parameters as nested dicts of float32 arrays.
    model_state: what is not learned by gradient (batch statistics), same layout.
    opt_state: optax's state.
    ema: exponential moving average of `params`, or None.
  """

  step: jax.Array
  params: Tree
  model_state: Tree
  opt_state: Tree
  ema: Tree | None

  def replace(self, **changes: Any) -> "TrainState":
    """A copy with some attributes changed."""
    return dataclasses.replace(self, **changes)

  @property
  def averaged(self) -> Tree:
    """The parameters to evaluate with: the moving average where one is kept."""
    return self.params if self.ema is None else self.ema


def start(params: Tree, model_state: Tree, opt_state: Tree, *, average: bool) -> TrainState:
  """The state before the first update; with a moving average, if one is to be kept."""
  return TrainState(
    step=jax.numpy.zeros((), jax.numpy.int32),
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    # A copy: the same buffer twice in a donated state would be donated twice.
    ema=jax.tree.map(jax.numpy.copy, params) if average else None,
  )


def count(params: Tree) -> int:
  """How many numbers the tree holds."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def update_ema(ema: Tree | None, params: Tree, step: jax.Array, decay: float) -> Tree | None:
  """One step of the moving average.

  The decay grows as (1 + step) / (10 + step) up to `decay`, so that a young average is not mostly
  the random start (as TensorFlow's ExponentialMovingAverage does with `num_updates`).
  """
  if ema is None:
    return None
  step = step.astype("float32")
  rate = jax.numpy.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda e, p: e + (1 - rate) * (p - e), ema, params)
