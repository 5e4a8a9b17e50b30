"""Scores of a split, summed batch by batch: CCC, confusion, unit counts, cross-entropy.

A metric is a small state of sums. The device gives one for each global batch; the host takes it
with `to_host` and merges in float64, because float32 sums of a million frames lose the third
digit of a CCC. `merge`, `compute` and `floor` therefore work on jax and on numpy arrays alike.
Padding rows have mask 0 and count for nothing. Inputs are widened to float32, or stay float64
where jax has it enabled.

The rules are those of the ABAW challenges: population moments over all frames of all videos,
F1 of a class or unit without support and predictions is 0, means over all classes and units.
`floor` is what the best constant prediction would score on the very same labels.
"""

from collections.abc import Sequence
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics

Array = jax.Array | np.ndarray
M = TypeVar("M", bound=metrics.Metric)

# Confusions are a product of zeros and ones, summed in float32: exact for less rows than this.
_EXACT_ROWS = 2**24
# `empty()` has axes of size 1: they broadcast to those of whatever is merged first.


def to_host(metric: M) -> M:
  """The same metric in numpy float64 and int64, to be merged there without losing digits."""
  wide = lambda x: np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else np.int64
  return jax.tree.map(lambda x: np.asarray(x, wide(x)), metric)


@flax.struct.dataclass
class CCC(metrics.Metric):
  """Concordance correlation coefficient (Lin, 1989) of each dimension.

  State, each [dimensions]: the number of labelled entries, the means, the sums of squared
  deviations from them, and the sum of products of the deviations.
  """

  count: Array
  mean_prediction: Array
  mean_target: Array
  squares_prediction: Array
  squares_target: Array
  products: Array

  @classmethod
  def empty(cls) -> "CCC":
    """No entries."""
    return cls(np.zeros(1, np.int32), *(np.zeros(1, np.float32) for _ in range(5)))

  @classmethod
  def from_model_output(
    cls, prediction: Array, target: Array, mask: Array | None = None, **_
  ) -> "CCC":
    """Centred moments of one batch.

    Args:
      prediction: [batch, dimensions].
      target: [batch, dimensions].
      mask: [batch, dimensions] 1 = labelled; None = all.
    """
    keep = _keep(mask, jnp.shape(prediction))
    count = keep.sum(0, dtype=jnp.int32)
    mean_prediction, from_mean = _centred(prediction, keep)
    mean_target, target_from_mean = _centred(target, keep)
    return cls(
      count=count,
      mean_prediction=mean_prediction,
      mean_target=mean_target,
      squares_prediction=(from_mean**2).sum(0),
      squares_target=(target_from_mean**2).sum(0),
      products=(from_mean * target_from_mean).sum(0),
    )

  def merge(self, other: "CCC") -> "CCC":
    """The moments of both together (Chan, Golub and LeVeque, 1983)."""
    count = self.count + other.count
    share = other.count / (count + (count == 0))
    weight = self.count * share
    step = other.mean_prediction - self.mean_prediction
    target_step = other.mean_target - self.mean_target
    return type(self)(
      count=count,
      mean_prediction=self.mean_prediction + step * share,
      mean_target=self.mean_target + target_step * share,
      squares_prediction=self.squares_prediction + other.squares_prediction + step**2 * weight,
      squares_target=self.squares_target + other.squares_target + target_step**2 * weight,
      products=self.products + other.products + step * target_step * weight,
    )

  def compute(self) -> Array:
    """[dimensions] in [-1, 1]; 0 where it is undefined: nothing labelled, or all constant."""
    shift = self.mean_prediction - self.mean_target
    return _ratio(
      2 * self.products, self.squares_prediction + self.squares_target + self.count * shift**2
    )

  def floor(self) -> Array:
    """[dimensions] zeros: the CCC of any constant."""
    return self.products * 0


@flax.struct.dataclass
class Confusion(metrics.Metric):
  """How often each class was taken for each: [target class, predicted class] counts."""

  counts: Array

  @classmethod
  def empty(cls) -> "Confusion":
    """No rows."""
    return cls(np.zeros((1, 1), np.int32))

  @classmethod
  def from_model_output(
    cls,
    prediction: Array,
    target: Array,
    mask: Array | None = None,
    classes: Sequence[int] | None = None,
    **_,
  ) -> "Confusion":
    """Counts of one batch; prediction and target are the classes with the largest values.

    Args:
      prediction: [batch, classes] logits or any other scores.
      target: [batch, classes] distributions; the first of equal classes is taken.
      mask: [batch] 1 = labelled; None = all.
      classes: indices to score alone: the prediction is the best among them, rows whose target is
        another class do not count, and the result is in the order given. None = all.
    """
    num_classes = jnp.shape(prediction)[-1]
    classes = list(range(num_classes) if classes is None else classes)
    position = np.full(num_classes, -1)
    position[classes] = np.arange(len(classes))
    predicted = jnp.argmax(jnp.asarray(prediction)[:, np.array(classes)], axis=-1)
    actual = jnp.asarray(position)[jnp.argmax(jnp.asarray(target), axis=-1)]
    return cls.from_classes(predicted, actual, mask, num_classes=len(classes))

  @classmethod
  def from_classes(
    cls, prediction: Array, target: Array, mask: Array | None = None, *, num_classes: int
  ) -> "Confusion":
    """Counts of [batch] class indices; rows with an index outside the classes do not count."""
    keep = _keep(mask, jnp.shape(target))
    if len(keep) >= _EXACT_ROWS:
      raise ValueError(f"{len(keep)} rows: count less than {_EXACT_ROWS} at once and merge")
    one_hot = lambda x: jax.nn.one_hot(x, num_classes, dtype=jnp.float32)
    actual = jnp.where(keep[:, None], one_hot(target), 0.0)
    return cls((actual.T @ one_hot(prediction)).astype(jnp.int32))

  def merge(self, other: "Confusion") -> "Confusion":
    """The counts of both."""
    return type(self)(self.counts + other.counts)

  def compute(self) -> dict[str, Array]:
    """Scores in [0, 1].

    Returns:
      "f1_per_class" [classes], "f1" their mean over all classes, seen or not, and "accuracy".
    """
    hits, support, predicted = self.counts.diagonal(), self.counts.sum(1), self.counts.sum(0)
    f1 = _ratio(2 * hits, support + predicted)
    return {"f1_per_class": f1, "f1": f1.mean(), "accuracy": _ratio(hits.sum(), support.sum())}

  def floor(self) -> dict[str, Array]:
    """Macro F1 and accuracy of always answering the most frequent class."""
    support = self.counts.sum(1)
    most, rows = support.max(), support.sum()
    return {
      "f1": _ratio(2 * most, rows + most) / len(support),
      "accuracy": _ratio(most, rows),
    }


@flax.struct.dataclass
class BinaryCounts(metrics.Metric):
  """True and false positives and negatives of independent units, each [units]."""

  true_positive: Array
  false_positive: Array
  false_negative: Array
  true_negative: Array

  @classmethod
  def empty(cls) -> "BinaryCounts":
    """No entries."""
    return cls(*(np.zeros(1, np.int32) for _ in range(4)))

  @classmethod
  def from_model_output(
    cls,
    prediction: Array,
    target: Array,
    mask: Array | None = None,
    threshold: float = 0.0,
    **_,
  ) -> "BinaryCounts":
    """Counts of one batch.

    Args:
      prediction: [batch, units] logits, or probabilities or decisions with a threshold of .5.
      target: [batch, units] in {0, 1}.
      mask: [batch, units] 1 = labelled; None = all.
      threshold: from which value on a unit is on; 0 for logits: p >= .5.
    """
    keep = _keep(mask, jnp.shape(prediction))
    on, actual = jnp.asarray(prediction) >= threshold, jnp.asarray(target) > 0
    count = lambda x: (x & keep).sum(0, dtype=jnp.int32)
    return cls(count(on & actual), count(on & ~actual), count(~on & actual), count(~on & ~actual))

  def merge(self, other: "BinaryCounts") -> "BinaryCounts":
    """The counts of both."""
    return jax.tree.map(lambda a, b: a + b, self, other)

  def compute(self) -> dict[str, Array]:
    """Scores in [0, 1].

    Returns:
      "f1_per_unit" [units] of the positive class, "f1" their mean, and "accuracy" over all
      labelled entries.
    """
    errors = self.false_positive + self.false_negative
    f1 = _ratio(2 * self.true_positive, 2 * self.true_positive + errors)
    hits = (self.true_positive + self.true_negative).sum()
    return {"f1_per_unit": f1, "f1": f1.mean(), "accuracy": _ratio(hits, hits + errors.sum())}

  def floor(self) -> dict[str, Array]:
    """Mean F1 of every unit always on, the best constant; and the F1 of each unit."""
    positive = self.true_positive + self.false_negative
    negative = self.false_positive + self.true_negative
    f1 = _ratio(2 * positive, 2 * positive + negative)
    return {"f1_per_unit": f1, "f1": f1.mean()}


@flax.struct.dataclass
class CrossEntropy(metrics.Metric):
  """Mean cross-entropy against soft targets, in nats.

  State: the sum of the rows' cross-entropies and their number (scalars), and the sum of their
  targets [classes], which the floor needs.
  """

  total: Array
  count: Array
  target_sum: Array

  @classmethod
  def empty(cls) -> "CrossEntropy":
    """No rows."""
    return cls(np.zeros((), np.float32), np.zeros((), np.int32), np.zeros(1, np.float32))

  @classmethod
  def from_model_output(
    cls, prediction: Array, target: Array, mask: Array | None = None, **_
  ) -> "CrossEntropy":
    """Sums of one batch.

    Args:
      prediction: [batch, classes] logits.
      target: [batch, classes] distributions.
      mask: [batch] 1 = labelled; None = all.
    """
    keep = _keep(mask, jnp.shape(prediction)[:1])
    logits = jnp.where(keep[:, None], _wide(prediction), 0.0)
    target = jnp.where(keep[:, None], _wide(target), 0.0)
    return cls(
      total=-(target * jax.nn.log_softmax(logits)).sum(),
      count=keep.sum(dtype=jnp.int32),
      target_sum=target.sum(0),
    )

  def merge(self, other: "CrossEntropy") -> "CrossEntropy":
    """The sums of both."""
    return jax.tree.map(lambda a, b: a + b, self, other)

  def compute(self) -> Array:
    """Scalar mean over the labelled rows; 0 where there are none."""
    return _ratio(self.total, self.count)

  def floor(self) -> Array:
    """Scalar: what the split's own mean distribution would score, which is its entropy."""
    share = _ratio(self.target_sum, self.count)
    log = jnp.log if isinstance(share, jax.Array) else np.log
    return -(share * log(share + (share == 0))).sum()


@flax.struct.dataclass
class SquaredError(metrics.Metric):
  """Mean squared error of rows, and what it explains of that of a yardstick.

  State: the sums of both over the rows, and their number, all scalars.
  """

  total: Array
  yardstick: Array
  count: Array

  @classmethod
  def empty(cls) -> "SquaredError":
    """No rows."""
    return cls(np.zeros((), np.float32), np.zeros((), np.float32), np.zeros((), np.int32))

  @classmethod
  def from_model_output(
    cls, error: Array, yardstick: Array, mask: Array | None = None, **_
  ) -> "SquaredError":
    """Sums of one batch.

    Args:
      error: [batch] mean squared error of each row.
      yardstick: [batch] that of an answer that knows nothing.
      mask: [batch] 1 = counts; None = all.
    """
    keep = _keep(mask, jnp.shape(error))
    total = lambda x: jnp.where(keep, _wide(x), 0.0).sum()
    return cls(total(error), total(yardstick), keep.sum(dtype=jnp.int32))

  def merge(self, other: "SquaredError") -> "SquaredError":
    """The sums of both."""
    return jax.tree.map(lambda a, b: a + b, self, other)

  def compute(self) -> dict[str, Array]:
    """ "mse", the mean over the rows, and "r2", 1 less its share of the yardstick's: at most 1."""
    explained = self.yardstick - self.total
    return {"mse": _ratio(self.total, self.count), "r2": _ratio(explained, self.yardstick)}

  def floor(self) -> dict[str, Array]:
    """The same of the yardstick."""
    return {"mse": _ratio(self.yardstick, self.count), "r2": 0 * self.yardstick}


def ccc(prediction: Array, target: Array, mask: Array | None = None) -> jax.Array:
  """CCC of whole arrays; `CCC` as one function that can be jitted.

  Args:
    prediction: [frames, dimensions], or [frames].
    target: the same.
    mask: the same, 1 = labelled; None = all.

  Returns:
    [dimensions] in [-1, 1], or a scalar for [frames].
  """
  return CCC.from_model_output(prediction, target, mask).compute()


def f1(
  prediction: Array, target: Array, mask: Array | None = None, *, num_classes: int | None = None
) -> jax.Array:
  """F1 of each class or unit; its mean is the challenges' F1. Can be jitted.

  Args:
    prediction: [frames] class indices, or [frames, units] decisions or probabilities: on from .5.
    target: [frames] class indices, or [frames, units] in {0, 1}.
    mask: as the target, 1 = labelled; None = all.
    num_classes: all classes, seen or not; None for units.

  Returns:
    [num_classes], or [units] of the positive class, in [0, 1]; 0 for those that neither occur nor
    are predicted.
  """
  if num_classes is None:
    counts = BinaryCounts.from_model_output(prediction, target, mask, threshold=0.5)
    return counts.compute()["f1_per_unit"]
  counts = Confusion.from_classes(prediction, target, mask, num_classes=num_classes)
  return counts.compute()["f1_per_class"]


def p_mtl(ccc: Array, f1_expression: Array, f1_au: Array) -> Array:
  """The multi-task score of the ABAW challenges (Kollias, 2022, arXiv:2202.10659), at most 3.

  Args:
    ccc: [2] of valence and arousal, or their mean.
    f1_expression: [classes] F1 of each expression, or their mean.
    f1_au: [units] F1 of each action unit, or their mean.
  """
  mean = lambda x: x.mean() if hasattr(x, "mean") else np.mean(x)
  return mean(ccc) + mean(f1_expression) + mean(f1_au)


def expression_abaw2(f1: Array, accuracy: Array) -> Array:
  """The expression score of ABAW1 and ABAW2: .67 macro F1 + .33 accuracy."""
  return 0.67 * f1 + 0.33 * accuracy


def au_abaw2(f1: Array, accuracy: Array) -> Array:
  """The action unit score of ABAW1 and ABAW2: the mean of mean F1 and accuracy over all entries."""
  return 0.5 * f1 + 0.5 * accuracy


def _wide(values: Array) -> jax.Array:
  values = jnp.asarray(values)
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _keep(mask: Array | None, shape: tuple[int, ...]) -> jax.Array:
  return jnp.ones(shape, bool) if mask is None else jnp.asarray(mask) > 0


def _centred(values: Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Means [dimensions] and deviations [batch, dimensions] (0 where not kept).

  Measured from the smallest value, so that a constant deviates by exactly 0: around a rounded
  mean, rounding would pass for variance and two equal constants would score a CCC of 1.
  """
  values = _wide(values)
  count = jnp.maximum(keep.sum(0, keepdims=True), 1)
  lowest = jnp.min(values, axis=0, keepdims=True, initial=jnp.inf, where=keep)
  lowest = jnp.where(jnp.isfinite(lowest), lowest, 0.0)
  above = jnp.where(keep, values - lowest, 0.0)
  mean_above = above.sum(0, keepdims=True) / count
  return (lowest + mean_above)[0], jnp.where(keep, above - mean_above, 0.0)


def _ratio(numerator: Array, denominator: Array) -> Array:
  """`numerator / denominator`, 0 where the denominator is (and with it the numerator)."""
  return numerator / (denominator + (denominator == 0))
