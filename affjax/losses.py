"""Losses on partly labelled batches: pure float32 functions of (prediction, target, mask).

Every one divides by the number of labelled entries, not by the size of the batch, and ignores
whatever stands where the mask is 0, even a NaN. Where nothing is labelled, loss and gradient are
exactly 0. All are plain reductions, so a batch sharded over devices gives the loss of the whole.
"""

import numbers
from collections.abc import Callable, Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

WEIGHTINGS = ("simple", "kendall", "liebel", "equal")
LOG_VARIANCE_LIMIT = 6.0


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
  logits, target, mask = _labelled_entries(logits, target, mask)
  classes = target.shape[-1]
  logits += _log_prior(logit_adjustment, adjustment_temperature, classes)
  rows = _row_weights(target, mask, class_weights)
  log_p = jax.nn.log_softmax(logits)
  target = _smooth(target, label_smoothing)
  if gamma:
    target *= jnp.exp(gamma * _log_not(log_p))
  return _mean(-(target * log_p).sum(-1), mask, rows)


def heteroscedastic_cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  log_variance: jax.Array | None = None,
  key: jax.Array | None = None,
  samples: int = 10,
  label_smoothing: float = 0.0,
  class_weights: Sequence[float] | None = None,
  logit_adjustment: Sequence[float] | None = None,
  adjustment_temperature: float = 1.0,
) -> jax.Array:
  """Cross-entropy of logits that are known up to a variance, which the model predicts per image.

  Of the mean over T samples of softmax(f + sigma e), e ~ N(0, 1) for each class, sigma = exp(s/2):
  Kendall and Gal (2017, arXiv:1703.04977; their equation 12, RECALL). Minus the logarithm of a mean
  of few samples is above that of the expectation, by a part in T. With `samples=0` the softmax of
  f / tau, tau = exp(s/2), and nothing is drawn. What Tallec et al. (2022, arXiv:2208.03506) do with
  an uncertainty of each image is not known to us. "A temperature, averaged by Monte Carlo" is
  ambiguous, as a temperature leaves nothing to average; that these are the two readings, and the
  first the default, is INFERRED.

  Args:
    logits: [batch, classes].
    target: [batch, classes] a distribution.
    mask: [batch] 1 = labelled.
    log_variance: [batch, 1] s, one for all classes, or [batch, classes]; used within [-6, 6] as by
      `uncertainty_weighted`. None: the logits are exact, as in `cross_entropy`.
    key: of the samples.
    samples: T; 0: the temperature.
    label_smoothing: see `cross_entropy`, as are the rest; the prior is added to what noise or
      temperature have made of the logits.
    class_weights: weights of the classes.
    logit_adjustment: the prior.
    adjustment_temperature: its factor.

  Raises:
    ValueError: an option outside its range or of another length, or samples without a key.
  """
  uncertain = _uncertain(logits, log_variance, mask, key, samples)
  logits, target, mask = _labelled_entries(logits, target, mask)
  classes = target.shape[-1]
  uncertain += _log_prior(logit_adjustment, adjustment_temperature, classes)[None]
  rows = _row_weights(target, mask, class_weights)
  log_p = _log_mean_exp(jax.nn.log_softmax(uncertain))
  return _mean(-(_smooth(target, label_smoothing) * log_p).sum(-1), mask, rows)


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


def dice_loss(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  unit_weights: Sequence[float] | None = None,
) -> jax.Array:
  """Soft Dice loss of independent units, entry by entry.

  Mean over the labelled entries of 1 - (2 y p + 1) / (y^2 + p^2 + 1), p the sigmoid of the logit:
  as in the code of Tallec et al. (2022, gtallec/DL_ISIR_ABAW3), whose mean counts unlabelled
  entries too.

  Args:
    logits: [batch, units].
    target: [batch, units] in [0, 1].
    mask: [batch, units] 1 = labelled.
    unit_weights: [units] weights >= 0; the divisor stays the number of labelled entries. None = 1.

  Returns:
    Scalar in [0, 1/2] before the weights.

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  logits, target, mask = _labelled_entries(logits, target, mask)
  p = jax.nn.sigmoid(logits)
  apart = (target - p) ** 2 / (target**2 + p**2 + 1.0)  # the same, without a difference of ones
  return _mean(apart, mask, _entry_weights(mask, unit_weights))


def binary_cross_entropy_and_dice(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  dice_weight: float = 0.5,
  label_smoothing: float = 0.0,
  unit_weights: Sequence[float] | None = None,
) -> jax.Array:
  """Binary cross-entropy and a share of `dice_loss`: Tallec et al. (2022, gtallec/DL_ISIR_ABAW3).

  Args:
    logits: [batch, units].
    target: [batch, units] in [0, 1].
    mask: [batch, units] 1 = labelled.
    dice_weight: >= 0, of the Dice loss beside the cross-entropy.
    label_smoothing: in [0, 1]; a target y becomes (1 - this) y + this / 2, in both losses.
    unit_weights: [units] weights >= 0 of both losses; the authors' are inverse to how often a unit
      is on, with mean 1: "inverse" in a config. The divisor stays the number of labelled entries.
      None = 1.

  Raises:
    ValueError: an option outside its range, or of another length.
  """
  _check_range("dice_weight", dice_weight, 0.0)
  _check_range("label_smoothing", label_smoothing, 0.0, 1.0)
  logits, target, mask = _labelled_entries(logits, target, mask)
  target = (1.0 - label_smoothing) * target + label_smoothing / 2
  entries = -target * jax.nn.log_sigmoid(logits) - (1.0 - target) * jax.nn.log_sigmoid(-logits)
  cross_entropy = _mean(entries, mask, _entry_weights(mask, unit_weights))
  return cross_entropy + dice_weight * dice_loss(logits, target, mask, unit_weights)


def heteroscedastic_binary_cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  log_variance: jax.Array | None = None,
  key: jax.Array | None = None,
  samples: int = 10,
  positive_weight: Sequence[float] | None = None,
) -> jax.Array:
  """Binary cross-entropy of logits that are known up to a variance, predicted for each image.

  As `heteroscedastic_cross_entropy`, with a sigmoid of each unit for the softmax: INFERRED, Kendall
  and Gal write of classes alone.

  Args:
    logits: [batch, units].
    target: [batch, units] in [0, 1].
    mask: [batch, units] 1 = labelled.
    log_variance: [batch, units] s; None: `binary_cross_entropy`.
    key: of the samples.
    samples: T; 0: the temperature.
    positive_weight: [units] as in `binary_cross_entropy`.

  Raises:
    ValueError: an option outside its range or of another length, or samples without a key.
  """
  uncertain = _uncertain(logits, log_variance, mask, key, samples)
  logits, target, mask = _labelled_entries(logits, target, mask)
  on, off = (_log_mean_exp(jax.nn.log_sigmoid(x)) for x in (uncertain, -uncertain))
  positive, negative = -target * on, (1.0 - target) * off
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


def gaussian_nll(
  prediction: jax.Array,
  target: jax.Array,
  mask: jax.Array,
  log_variance: jax.Array | None = None,
) -> jax.Array:
  """Negative log-likelihood under normal errors whose variance the model predicts per image.

  Mean over the labelled entries of exp(-s) (y - x)^2 / 2 + s / 2, in nats but for the constant
  log(2 pi) / 2: Kendall and Gal (2017, arXiv:1703.04977).

  Args:
    prediction: [batch, dimensions].
    target: [batch, dimensions].
    mask: [batch, dimensions] 1 = labelled.
    log_variance: [batch, dimensions] s, used within [-6, 6] as by `uncertainty_weighted`; None: 0,
      which is half of `mean_squared_error`.

  Returns:
    Scalar; below 0 where errors are small and known to be.
  """
  log_variance = jnp.zeros_like(prediction) if log_variance is None else log_variance
  s, _, _ = _labelled_entries(log_variance, log_variance, mask)
  prediction, target, mask = _labelled_entries(prediction, target, mask)
  s = _within_limits(s)
  return _mean(0.5 * jnp.exp(-s) * (prediction - target) ** 2 + 0.5 * s, mask)


def jensen_shannon(logits: Sequence[jax.Array], mask: jax.Array) -> jax.Array:
  """How far apart the distributions are that several networks give for a row, in nats.

  The divergence of Jensen and Shannon (Lin, 1991): the mean over the networks of the
  Kullback-Leibler divergence of each from the mean of all. Masked CoTEX (Li et al., 2022,
  arXiv:2207.11679) has two that are to agree.

  Args:
    logits: [batch, classes] of each network.
    mask: [batch] 1 = counts.

  Returns:
    Scalar from 0, all alike, to the logarithm of the number of networks, over the rows that count.
  """
  mask = jnp.asarray(mask) > 0
  clean = [jnp.where(mask[:, None], jnp.asarray(x, jnp.float32), 0.0) for x in logits]
  log_p = jax.nn.log_softmax(jnp.stack(clean))
  log_mean = jax.nn.logsumexp(log_p, axis=0) - np.log(len(logits))
  rows = (jnp.exp(log_p) * (log_p - log_mean[None])).sum(-1).mean(0)
  return _mean(rows, mask.astype(jnp.float32))


def per_dimension(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes of a loss of [batch, dimensions] one that gives a value for each dimension.

  Args:
    loss: such as `ccc_loss` or `mean_squared_error`, of (prediction, target, mask).

  Returns:
    A function of the same arguments: [dimensions], what `loss` is of each alone.
  """
  of_one = lambda *columns: loss(*(column[:, None] for column in columns))
  return jax.vmap(of_one, in_axes=1)


def labelled(mask: jax.Array, axis: int | None = None) -> jax.Array:
  """Says whether a batch has any label of a task: float32, 0 or 1.

  Args:
    mask: 1 = labelled.
    axis: 0 says it for each dimension; None, for all of them together.
  """
  return (jnp.asarray(mask) > 0).any(axis).astype(jnp.float32)


def uncertainty_weighted(
  losses: Mapping[str, jax.Array],
  labelled: Mapping[str, jax.Array],
  log_variances: Mapping[str, jax.Array],
  kind: str = "simple",
  gaussian: Collection[str] = ("va",),
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Sums the losses of the tasks, each weighted by a learned uncertainty s = log sigma^2.

  As Tallec et al. (2022, arXiv:2208.03506) do for affect; their exact formula is not public, so
  each of these is a reading of it: INFERRED. Of a loss L > 0 that stays as it is, the minimum over
  s lies where the last column says.

    kind       a task's term                                                s at the minimum
    simple     exp(-s) L + s                                                log L
    kendall    exp(-s) L / 2 + s / 2   where L is a mean squared error      log L
               exp(-s) L + s / 2       where L is a cross-entropy           log 2L
    liebel     exp(-s) L / 2 + log(1 + exp(s))                              log(l + sqrt(l^2 + 2l)),
                                                                            l = L / 4
    equal      L; nothing is learned

  - `kendall` is Kendall, Gal and Cipolla (2018, arXiv:1705.07115): the likelihood of normal errors,
    and an approximation to that of a softmax of temperature sigma^2, which we take for sigmoids
    too. A CCC is no likelihood, so it has no place there.
  - `liebel` is Liebel and Koerner (2018, arXiv:1805.06334), whose penalty never falls below 0.
  - `simple` drops the halves, which a CCC has no claim to. A task's scale does not matter to it: at
    its minimum over s the objective is 1 + log L, and so its gradient that of log L.

  A task may come as one loss and one s, or as one of each for every dimension. Of dimensions, the
  mean counts, over those that are labelled (a joint likelihood would be their sum): so a task has
  as much of a say either way.

  Args:
    losses: task -> scalar, or [dimensions].
    labelled: task -> bool or 0/1 of the same shape, whether the batch has such labels. What has
      none drops out whole: with its `+ s` kept, s would run to minus infinity.
    log_variances: task -> learned s of the same shape, used within [-6, 6]. An s beyond a limit has
      the gradient that leads back and none that leads further out. Unused by "equal".
    kind: of WEIGHTINGS.
    gaussian: the tasks whose loss is a mean squared error, for "kendall".

  Returns:
    The scalar to minimise, and task -> the factor that its loss had in its term (0: dropped),
    before the mean over dimensions.

  Raises:
    ValueError: `kind` is unknown, or a task lacks its log-variance or its `labelled`.
  """
  if kind not in WEIGHTINGS:
    raise ValueError(
      f"kind {kind!r} of uncertainty weighting: use one of {', '.join(map(repr, WEIGHTINGS))}"
    )
  needed = {"labelled": labelled} | ({"log_variances": log_variances} if kind != "equal" else {})
  total, weights = jnp.zeros((), jnp.float32), {}
  for task, loss in losses.items():
    for name, given in needed.items():
      if task not in given:
        raise ValueError(f"{name} has no {task!r} but losses has; it has {sorted(given)}")
    loss = jnp.asarray(loss, jnp.float32)
    present = jnp.asarray(labelled[task]) > 0
    weight, penalty = jnp.ones_like(loss), 0.0
    if kind != "equal":
      s = _within_limits(jnp.asarray(log_variances[task], jnp.float32))
      weight, penalty = _weight_and_penalty(kind, s, task in gaussian)
    term = jnp.where(present, weight * loss + penalty, 0.0)
    total += term.sum() / jnp.maximum(present.sum(), 1) if term.ndim else term
    weights[task] = jax.lax.stop_gradient(jnp.where(present, weight, 0.0))
  return total, weights


def _weight_and_penalty(kind: str, s: jax.Array, gaussian: bool) -> tuple[jax.Array, jax.Array]:
  if kind == "simple":
    return jnp.exp(-s), s
  if kind == "kendall":
    return (0.5 if gaussian else 1.0) * jnp.exp(-s), 0.5 * s
  return 0.5 * jnp.exp(-s), jax.nn.softplus(s)


@jax.custom_vjp
def _within_limits(s: jax.Array) -> jax.Array:
  """Clips `s`; its gradient passes unless a step down it would lead further out."""
  return jnp.clip(s, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)


def _clip_forward(s: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _within_limits(s), s


def _clip_backward(s: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
  outward = ((s > LOG_VARIANCE_LIMIT) & (slope < 0)) | ((s < -LOG_VARIANCE_LIMIT) & (slope > 0))
  return (jnp.where(outward, 0.0, slope),)


# By the slope that arrives, so that the rule is the same for every form that s stands in.
_within_limits.defvjp(_clip_forward, _clip_backward)


def _uncertain(
  logits: jax.Array,
  log_variance: jax.Array | None,
  mask: jax.Array,
  key: jax.Array | None,
  samples: int,
) -> jax.Array:
  """[samples or 1, batch, n] what the logits may be, see `heteroscedastic_cross_entropy`."""
  if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
    raise ValueError(f"samples={samples!r}: use an integer >= 0 (0: a temperature)")
  logits, _, _ = _labelled_entries(logits, logits, mask)
  if log_variance is None:
    return logits[None]
  s, _, _ = _labelled_entries(log_variance, log_variance, mask)
  sigma = jnp.exp(0.5 * _within_limits(s))
  if not samples:
    return (logits / sigma)[None]
  if key is None:
    raise ValueError(f"samples={samples} of uncertain logits need a key")
  # A row's draws do not depend on how many rows there are.
  of_row = lambda row: jax.random.normal(jax.random.fold_in(key, row), (samples, logits.shape[1]))
  noise = jax.vmap(of_row, out_axes=1)(jnp.arange(len(logits)))
  return logits[None] + sigma[None] * noise


def _log_mean_exp(x: jax.Array) -> jax.Array:
  """[samples, ...] -> [...]; a single sample comes back as it is."""
  return jax.nn.logsumexp(x, 0) - np.log(len(x)) if len(x) > 1 else x[0]


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


def _smooth(target: jax.Array, label_smoothing: float) -> jax.Array:
  _check_range("label_smoothing", label_smoothing, 0.0, 1.0)
  return (1.0 - label_smoothing) * target + label_smoothing / target.shape[-1]


def _log_prior(
  logit_adjustment: Sequence[float] | None, temperature: float, classes: int
) -> jax.Array:
  """[1, classes] what is added to the logits, see `cross_entropy`."""
  _check_range("adjustment_temperature", temperature, 0.0)
  if logit_adjustment is None:
    return jnp.zeros((1, classes))
  prior = _weights("logit_adjustment", logit_adjustment, classes)
  share = jnp.where(prior > 0, prior / prior.sum(), 1.0)
  return temperature * jnp.log(share)[None, :]


def _row_weights(
  target: jax.Array, mask: jax.Array, class_weights: Sequence[float] | None
) -> jax.Array:
  """[batch] what each row counts for, see `cross_entropy`."""
  if class_weights is None:
    return mask
  weights = _weights("class_weights", class_weights, target.shape[-1])
  return mask * (target * weights[None, :]).sum(-1)


def _entry_weights(mask: jax.Array, unit_weights: Sequence[float] | None) -> jax.Array:
  """[batch, units] what each entry counts for, see `dice_loss`."""
  if unit_weights is None:
    return mask
  return mask * _weights("unit_weights", unit_weights, mask.shape[-1])[None, :]


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
