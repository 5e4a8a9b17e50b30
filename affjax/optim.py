"""Optimisers and schedules, as optax chains."""

import re
from typing import Any

import jax
import optax

# Vectors (biases, norms' scales) and scalars (log variances) are never decayed, nor these matrices.
NOT_DECAYED = re.compile(r"token|position")


def learning_rate_schedule(
  *, learning_rate: float, steps: int, warmup_steps: int, kind: str = "cosine"
) -> optax.Schedule:
  """Linear warm-up to `learning_rate`, then `cosine` to zero, `linear` to zero, or `constant`."""
  if kind not in ("cosine", "linear", "constant"):
    raise ValueError(f"config.optimizer.schedule={kind!r}: use 'cosine', 'linear' or 'constant'")
  if not 0 <= warmup_steps <= steps:
    raise ValueError(
      f"config.optimizer.warmup_steps={warmup_steps} is not within config.steps={steps}"
    )
  rest = max(steps - warmup_steps, 1)
  after = {
    "cosine": optax.cosine_decay_schedule(learning_rate, rest),
    "linear": optax.linear_schedule(learning_rate, 0.0, rest),
    "constant": optax.constant_schedule(learning_rate),
  }[kind]
  warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
  return optax.join_schedules([warmup, after], [warmup_steps])


def decayed(params: Any) -> Any:
  """Tree of booleans: which parameters weight decay applies to."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf.ndim >= 2 and not NOT_DECAYED.search(jax.tree_util.keystr(path)), params
  )


def adamw(
  *,
  steps: int,
  learning_rate: float = 1e-3,
  warmup_steps: int = 0,
  schedule: str = "cosine",
  weight_decay: float = 0.05,
  clip_norm: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) after clipping by the global norm.

  Args:
    steps: updates of the whole run.
    learning_rate: peak.
    warmup_steps: linear from 0 to the peak.
    schedule: what follows, see `learning_rate_schedule`.
    weight_decay: decoupled, times the learning rate; matrices only.
    clip_norm: of the whole gradient; 0: no clipping.
    b1: decay of the first moment.
    b2: decay of the second moment.

  Returns:
    The transformation, and the learning rate as a function of the step.
  """
  rate = learning_rate_schedule(
    learning_rate=learning_rate, steps=steps, warmup_steps=warmup_steps, kind=schedule
  )
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  update = optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed)
  return optax.chain(clip, update), rate
