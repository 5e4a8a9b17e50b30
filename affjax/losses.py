"""Losses on partly labelled batches: pure float32 functions of (prediction, target, mask).

Every one divides by the number of labelled entries, not by the size of the batch, and ignores
whatever stands where the mask is 0, even a NaN. Where nothing is labelled, loss and gradient are
exactly 0. All are plain reductions, so a batch sharded over devices gives the loss of the whole.
"""

import numbers
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_LOG_VARIANCE_LIMIT = 6.0


def ccc_loss(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """One minus the concordance correlation coefficient (Lin, 1989), averaged over the dimensions.

  Population moments over the labelled entries of each dimension. The CCC of a small batch is
  a biased estimate of the CCC of the split: train with this, report `metrics.CCC`.

  Args:
    prediction: [batch, dimensions] such as valence and arousal, in [-1, 1].
    target: [batch, dimensions] in [-1, 1].
    mask: [batch, dimensions] 1 = labelled.

  Returns:
    Scalar in [0, 2], over the dimensions that have labels. Where one of them has a single label
    or is constant, its CCC counts as 0.
  """
  prediction, target, mask = _labelled_entries(prediction, target, mask)
  count = jnp.maximum(mask.sum(0, keepdims=True), 1.0)
  mean = lambda x: (x * mask).sum(0, keepdims=True) / count
  mean_prediction, mean_target = mean(prediction), mean(target)
  from_mean, target_from_mean = prediction - mean_prediction, target - mean_target
  spread = mean(from_mean**2) + mean(target_from_mean**2) + (mean_prediction - mean_target) ** 2
  # The epsilon decides 0/0 (constant and equal) and is far below the variance of any real batch.
  concordance = 2.0 * mean(from_mean * target_from_mean) / (spread + 1e-8)
  return _mean(1.0 - concordance, mask.max(0, keepdims=True))


def cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
  logit_adjustment: Sequence[float] | None = None,
  adjustment_temperature: float = 1.0,
) -> jax.Array:
  """Cross-entropy against a distribution over the classes, in nats.

  Args:
    logits: [batch, classes].
    target: [batch, classes] a distribution: one-hot, shares of votes, a mixture.
    mask: [batch] 1 = labelled.
    label_smoothing: share of the target that is spread evenly over all classes, in [0, 1].
    class_weights: [classes] weights >= 0; a row weighs the mean of them under its target, before
      smoothing. The divisor stays the number of labelled rows, where PyTorch divides by the sum of
      their weights: a batch of rare classes counts for more here, and as much as any other there.
    logit_adjustment: [classes] the prior, shares or counts (Menon et al., 2021, arXiv:2007.07314):
      its logarithm is added to the logits, so that those of the model, which nothing is added to
      when it predicts, come to favour no class. A class of prior 0 stays as it is: no row pulls it
      up, and all push it down.
    adjustment_temperature: factor of that logarithm, >= 0 (tau in the paper).

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  return focal_cross_entropy(
    logits,
    target,
    mask,
    0.0,
    label_smoothing,
    class_weights,
    logit_adjustment,
    adjustment_temperature,
  )


def focal_cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  gamma: float = 2.0,
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
  logit_adjustment: Sequence[float] | None = None,
  adjustment_temperature: float = 1.0,
) -> jax.Array:
  """Focal loss (Lin et al., 2017, arXiv:1708.02002) of a distribution over the classes, in nats.

  sum over c of -target_c (1 - p_c)^gamma log p_c, which for a one-hot target is the paper's with a
  softmax. Of a soft target the minimum lies beside the target itself, unless gamma is 0.

  Args:
    logits: [batch, classes].
    target: [batch, classes] a distribution.
    mask: [batch] 1 = labelled.
    gamma: >= 0, how far what is already right is passed over; 0: cross-entropy.
    label_smoothing: see `cross_entropy`, as are the rest.
    class_weights: the paper's alpha, one for each class.
    logit_adjustment: the prior.
    adjustment_temperature: its factor.

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  _check_range("gamma", gamma, 0.0)
  _check_range("label_smoothing", label_smoothing, 0.0, 1.0)
  _check_range("adjustment_temperature", adjustment_temperature, 0.0)
  logits, target, mask = _labelled_entries(logits, target, mask)
  classes = target.shape[-1]
  if logit_adjustment is not None:
    prior = _weights("logit_adjustment", logit_adjustment, classes)
    share = jnp.where(prior > 0, prior / prior.sum(), 1.0)
    logits += adjustment_temperature * jnp.log(share)[None, :]
  rows = mask
  if class_weights is not None:
    weights = _weights("class_weights", class_weights, classes)
    rows *= (target * weights[None, :]).sum(-1)
  target = (1.0 - label_smoothing) * target + label_smoothing / classes
  log_p = jax.nn.log_softmax(logits)
  if gamma:
    target *= jnp.exp(gamma * _log_not(log_p))
  return _mean(-(target * log_p).sum(-1), mask, rows)


def binary_cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  positive_weight: Sequence[float] | None = None,
) -> jax.Array:
  """Binary cross-entropy of independent units, in nats.

  Args:
    logits: [batch, units].
    target: [batch, units] in [0, 1].
    mask: [batch, units] 1 = labelled.
    positive_weight: [units] weight >= 0 of the positive part of each unit, such as negatives
      divided by positives; the divisor stays the number of labelled entries. None = 1.

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  return binary_focal_cross_entropy(logits, target, mask, 0.0, positive_weight)


def binary_focal_cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  gamma: float = 2.0,
  positive_weight: Sequence[float] | None = None,
) -> jax.Array:
  """Focal loss (Lin et al., 2017, arXiv:1708.02002) of independent units, in nats.

  Divides by the number of labelled entries, the paper by that of the positive ones.

  Args:
    logits: [batch, units].
    target: [batch, units] in [0, 1].
    mask: [batch, units] 1 = labelled.
    gamma: >= 0, how far what is already right is passed over; 0: binary cross-entropy.
    positive_weight: [units] as in `binary_cross_entropy`. The paper's alpha is a weight of
      alpha / (1 - alpha), but for a factor of the whole.

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  _check_range("gamma", gamma, 0.0)
  logits, target, mask = _labelled_entries(logits, target, mask)
  on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  positive, negative = -target * on, (1.0 - target) * off
  if gamma:
    positive *= jnp.exp(gamma * off)
    negative *= jnp.exp(gamma * on)
  if positive_weight is not None:
    positive *= _weights("positive_weight", positive_weight, target.shape[-1])[None, :]
  return _mean(positive - negative, mask)


def mean_squared_error(prediction: jax.Array, target: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean of the squared differences over the labelled entries.

  Args:
    prediction: [batch, dimensions].
    target: [batch, dimensions].
    mask: [batch, dimensions] 1 = labelled.
  """
  prediction, target, mask = _labelled_entries(prediction, target, mask)
  return _mean((prediction - target) ** 2, mask)


def labelled(mask: jax.Array) -> jax.Array:
  """Says whether a batch has any label of a task: float32 scalar, 0 or 1."""
  return (jnp.asarray(mask) > 0).any().astype(jnp.float32)


def uncertainty_weighted(
  losses: Mapping[str, jax.Array],
  labelled: Mapping[str, jax.Array],
  log_variances: Mapping[str, jax.Array],
  kind: str = "simple",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums the losses of the tasks, each weighted by a learned uncertainty.

  After Kendall, Gal and Cipolla (2018, arXiv:1705.07115), as Tallec et al. (2022,
  arXiv:2208.03506) use the idea for affect; their exact formula is not public. `simple` is
  sum of exp(-s) L + s. It differs from a Gaussian likelihood by the halves, which a CCC loss has
  no claim to. Its minimum over s is at s = log L, so a task's scale does not matter.

  Args:
    losses: task -> scalar.
    labelled: task -> bool or 0/1 scalar, whether the batch has labels of the task. A task without
      drops out whole: with its `+ s` kept, s would run to minus infinity.
    log_variances: task -> learned scalar s, used within [-6, 6]. An s beyond a limit has the
      gradient that leads back and none that leads further out.
    kind: "simple".

  Returns:
    The scalar to minimise, and task -> the weight exp(-s) that its loss had (0: dropped).

  Raises:
    ValueError: `kind` is unknown, or a task lacks its log-variance or its `labelled`.
  """
  if kind != "simple":
    raise ValueError(f"kind {kind!r} of uncertainty weighting: use 'simple'")
  total, weights = jnp.zeros((), jnp.float32), {}
  for task, loss in losses.items():
    for name, given in (("labelled", labelled), ("log_variances", log_variances)):
      if task not in given:
        raise ValueError(f"{name} has no {task!r} but losses has; it has {sorted(given)}")
    present = jnp.asarray(labelled[task]) > 0
    loss = jnp.asarray(loss, jnp.float32)
    s = _within_limits(jnp.asarray(log_variances[task], jnp.float32), loss)
    total += jnp.where(present, jnp.exp(-s) * loss + s, 0.0)
    weights[task] = jax.lax.stop_gradient(jnp.where(present, jnp.exp(-s), 0.0))
  return total, weights


def _within_limits(s: jax.Array, loss: jax.Array) -> jax.Array:
  """Clips `s`; its gradient passes unless a step down it would lead further out."""
  clipped = jax.lax.stop_gradient(jnp.clip(s, -_LOG_VARIANCE_LIMIT, _LOG_VARIANCE_LIMIT))
  slope = jax.lax.stop_gradient(1.0 - jnp.exp(-clipped) * loss)
  outward = ((s > _LOG_VARIANCE_LIMIT) & (slope < 0)) | ((s < -_LOG_VARIANCE_LIMIT) & (slope > 0))
  # Worth `clipped`: what is added is 0, and carries the gradient.
  return clipped + jnp.where(outward, 0.0, s - jax.lax.stop_gradient(s))


def _labelled_entries(
  prediction: jax.Array, target: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """float32 of all three, 0 where the mask is, before any arithmetic that could make a NaN."""
  mask = jnp.asarray(mask) > 0
  keep = mask.reshape(mask.shape + (1,) * (jnp.ndim(prediction) - mask.ndim))
  clean = lambda x: jnp.where(keep, jnp.asarray(x, jnp.float32), 0.0)
  return clean(prediction), clean(target), mask.astype(jnp.float32)


def _mean(values: jax.Array, mask: jax.Array, weights: jax.Array | None = None) -> jax.Array:
  """Sum by `weights` (None: the mask), divided by the number of labelled entries."""
  weights = mask if weights is None else weights
  return (values * weights).sum() / jnp.maximum(mask.sum(), 1.0)


def _log_not(log_p: jax.Array) -> jax.Array:
  """[batch, classes] log p -> log(1 - p), as what the others sum to: finite where p rounds to 1."""
  classes = log_p.shape[-1]
  shape = (len(log_p), classes, classes)
  others = jnp.broadcast_to(~jnp.eye(classes, dtype=bool)[None], shape)
  return jax.nn.logsumexp(jnp.broadcast_to(log_p[:, None, :], shape), -1, where=others)


def _weights(name: str, value: Sequence[float] | jax.Array, length: int) -> jax.Array:
  """An option that holds a number for each class or unit; checked unless it is being traced."""
  if isinstance(value, jax.core.Tracer):
    return value.astype(jnp.float32)
  try:
    array = np.asarray(value, np.float32)
  except (TypeError, ValueError):
    array = np.array(np.nan)
  if array.shape != (length,):
    raise ValueError(f"{name}={value!r}: use {length} numbers, one for each class or unit")
  if not (np.isfinite(array).all() and (array >= 0).all() and array.any()):
    raise ValueError(f"{name}={value!r}: use finite numbers >= 0, not all of them 0")
  return jnp.asarray(array)


def _check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
  if not (isinstance(value, numbers.Real) and low <= value <= high and value < float("inf")):
    limits = f">= {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
    raise ValueError(f"{name}={value!r}: use a number {limits}")
