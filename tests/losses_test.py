import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special, stats

from affjax import losses

WEIGHTS = np.array([0.5, 1, 7])
ROW_LOSSES = {
  "cross_entropy": losses.cross_entropy,
  "weighted_cross_entropy": functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
  "adjusted_cross_entropy": functools.partial(losses.cross_entropy, logit_adjustment=[5, 0, 3]),
  "focal_cross_entropy": losses.focal_cross_entropy,
  "tempered_cross_entropy": lambda logits, *args: losses.heteroscedastic_cross_entropy(
    logits, *args, 0.3 * logits, samples=0
  ),
  "noisy_cross_entropy": lambda logits, *args: losses.heteroscedastic_cross_entropy(
    logits, *args, logits[:, :1], jax.random.key(0)
  ),
}
ENTRY_LOSSES = {
  "ccc_loss": losses.ccc_loss,
  "binary_cross_entropy": losses.binary_cross_entropy,
  "weighted_binary_cross_entropy": functools.partial(
    losses.binary_cross_entropy, positive_weight=WEIGHTS
  ),
  "binary_focal_cross_entropy": losses.binary_focal_cross_entropy,
  "dice_loss": functools.partial(losses.dice_loss, unit_weights=WEIGHTS),
  "binary_cross_entropy_and_dice": functools.partial(
    losses.binary_cross_entropy_and_dice, label_smoothing=0.1
  ),
  "mean_squared_error": losses.mean_squared_error,
  "gaussian_nll": lambda prediction, *args: losses.gaussian_nll(prediction, *args, prediction),
  "noisy_binary_cross_entropy": lambda logits, *args: losses.heteroscedastic_binary_cross_entropy(
    logits, *args, 0.3 * logits, jax.random.key(0)
  ),
}
ALL_LOSSES = ROW_LOSSES | ENTRY_LOSSES


def batch(name, rows=64, columns=3, seed=0):
  """Prediction, target, mask; what is not labelled is a NaN, predicted or not."""
  rng = np.random.default_rng(seed)
  prediction = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
  if name in ROW_LOSSES:
    target = rng.dirichlet(np.ones(columns), rows).astype(np.float32)
    mask = rng.uniform(size=rows) < 0.6
  else:
    target = rng.uniform(0, 1, (rows, columns)).astype(np.float32)
    mask = rng.uniform(size=(rows, columns)) < 0.6
  prediction[~mask] = target[~mask] = np.nan
  return prediction, target, mask.astype(np.float32)


def ccc(x, y):
  return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_ccc_loss_is_the_textbook_formula_over_the_labelled_entries():
  prediction, target, mask = batch("ccc_loss")
  keep = mask > 0
  columns = [ccc(prediction[keep[:, k], k], target[keep[:, k], k]) for k in range(3)]
  np.testing.assert_allclose(
    losses.ccc_loss(prediction, target, mask), 1 - np.mean(columns), rtol=1e-5
  )


def test_ccc_loss_averages_over_the_dimensions_that_have_labels():
  prediction, target, mask = batch("ccc_loss")
  mask[:, 1] = 0
  both = losses.ccc_loss(prediction[:, [0, 2]], target[:, [0, 2]], mask[:, [0, 2]])
  np.testing.assert_allclose(losses.ccc_loss(prediction, target, mask), both, rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 8], ids=["one label", "constant"])
def test_ccc_loss_is_one_with_a_finite_gradient_where_ccc_is_undefined(rows):
  values = np.full((rows, 2), 0.7, np.float32)
  loss, gradient = jax.value_and_grad(losses.ccc_loss)(values, values, np.ones((rows, 2)))
  np.testing.assert_allclose(loss, 1, atol=1e-6)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_textbook_formula(smoothing):
  logits, target, mask = batch("cross_entropy")
  keep = mask > 0
  soft = (1 - smoothing) * target[keep] + smoothing / 3
  expected = -(soft * special.log_softmax(logits[keep], axis=1)).sum(1).mean()
  np.testing.assert_allclose(
    losses.cross_entropy(logits, target, mask, smoothing), expected, rtol=1e-5
  )


def test_class_weights_weigh_each_row_by_its_target_and_leave_the_divisor():
  logits, target, mask = batch("cross_entropy")
  keep = mask > 0
  rows = -(target[keep] * special.log_softmax(logits[keep], axis=1)).sum(1)
  expected = (rows * (target[keep] @ WEIGHTS)).sum() / keep.sum()
  found = losses.cross_entropy(logits, target, mask, class_weights=WEIGHTS)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_class_weights_are_those_of_the_target_before_it_is_smoothed():
  logits = np.array([[0.3, -0.2, 0.1]], np.float32)
  target, one = np.eye(3, dtype=np.float32)[[2]], np.ones(1, np.float32)
  plain = losses.cross_entropy(logits, target, one, 0.2)
  weighted = losses.cross_entropy(logits, target, one, 0.2, class_weights=WEIGHTS)
  np.testing.assert_allclose(weighted, 7 * plain, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_logit_adjustment_multiplies_the_odds_by_the_prior(temperature):
  logits, target, mask = batch("cross_entropy")
  keep = mask > 0
  odds = np.exp(logits[keep]) * np.array([0.7, 0.1, 0.2]) ** temperature
  expected = -(target[keep] * np.log(odds / odds.sum(1, keepdims=True))).sum(1).mean()
  for prior in ([0.7, 0.1, 0.2], [70, 10, 20]):  # shares or counts
    found = losses.cross_entropy(
      logits, target, mask, logit_adjustment=prior, adjustment_temperature=temperature
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_with_the_adjustment_frequent_classes_have_no_advantage():
  target = np.eye(3, dtype=np.float32)[[0] * 14 + [1] * 2 + [2] * 4]
  slope = jax.grad(losses.cross_entropy)
  args = (np.zeros((20, 3), np.float32), target, np.ones(20))
  np.testing.assert_allclose(slope(*args, logit_adjustment=[14, 2, 4]).sum(0), 0, atol=1e-6)
  assert (np.abs(slope(*args).sum(0)) > 0.1).all()


def test_a_class_of_prior_zero_is_pushed_down_as_without_adjustment():
  logits, target = np.zeros((2, 3), np.float32), np.eye(3, dtype=np.float32)[[0, 2]]
  slope = jax.grad(losses.cross_entropy)(
    logits, target, np.ones(2), 0.1, logit_adjustment=[0.5, 0, 0.5]
  )
  odds = np.array([0.5, 1, 0.5])
  np.testing.assert_allclose(slope[:, 1], (odds[1] / odds.sum() - 0.1 / 3) / 2, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_losses_are_the_textbook_formulas(gamma):
  logits, target, mask = batch("cross_entropy")
  keep = mask > 0
  p = special.softmax(logits[keep], axis=1)
  expected = -(target[keep] * (1 - p) ** gamma * np.log(p)).sum(1).mean()
  found = losses.focal_cross_entropy(logits, target, mask, gamma)
  np.testing.assert_allclose(found, expected, rtol=1e-5)

  logits, target, mask = batch("binary_cross_entropy")
  p = special.expit(logits)
  positive = WEIGHTS * target * (1 - p) ** gamma * np.log(p)
  entries = -(positive + (1 - target) * p**gamma * np.log(1 - p))
  found = losses.binary_focal_cross_entropy(logits, target, mask, gamma, WEIGHTS)
  np.testing.assert_allclose(found, entries[mask > 0].mean(), rtol=1e-5)


@pytest.mark.parametrize(
  ("focal", "plain", "options"),
  [
    (losses.focal_cross_entropy, losses.cross_entropy, {}),
    (
      losses.focal_cross_entropy,
      losses.cross_entropy,
      {"label_smoothing": 0.1, "class_weights": WEIGHTS, "logit_adjustment": [1, 2, 3]},
    ),
    (losses.binary_focal_cross_entropy, losses.binary_cross_entropy, {}),
    (
      losses.binary_focal_cross_entropy,
      losses.binary_cross_entropy,
      {"positive_weight": WEIGHTS},
    ),
  ],
)
def test_focal_losses_of_gamma_zero_are_the_plain_ones_exactly(focal, plain, options):
  args = batch("cross_entropy" if plain is losses.cross_entropy else "binary_cross_entropy")
  of = lambda loss, **more: jax.value_and_grad(functools.partial(loss, **options, **more))(*args)
  jax.tree.map(np.testing.assert_array_equal, of(focal, gamma=0.0), of(plain))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_losses_survive_extreme_logits(gamma):
  logits = jnp.array([[1e4, -1e4, 0], [-1e4, 0, 1e4], [40, 0, 0]])
  target, mask = jnp.eye(3)[jnp.array([0, 0, 0])], jnp.ones(3)
  loss, slope = jax.value_and_grad(losses.focal_cross_entropy)(logits, target, mask, gamma)
  np.testing.assert_allclose(loss, 2e4 / 3, rtol=1e-5)  # the second row alone is wrong
  assert np.isfinite(slope).all()
  np.testing.assert_allclose(slope[1], [-1 / 3, 0, 1 / 3], atol=1e-3)  # sums of thousands
  loss, slope = jax.value_and_grad(losses.binary_focal_cross_entropy)(
    logits, target, jnp.ones((3, 3)), gamma
  )
  assert np.isfinite(loss)
  assert np.isfinite(slope).all()


@pytest.mark.parametrize(
  ("loss", "options", "said"),
  [
    (losses.cross_entropy, {"label_smoothing": 1.5}, r"label_smoothing=1.5: .* in \[0, 1\]"),
    (losses.cross_entropy, {"label_smoothing": -0.1}, "label_smoothing=-0.1"),
    (losses.cross_entropy, {"class_weights": [1, 2]}, r"class_weights=\[1, 2\]: use 3 numbers"),
    (losses.cross_entropy, {"class_weights": "balanced"}, "class_weights='balanced': use 3"),
    (losses.cross_entropy, {"class_weights": [1, -1, 1]}, "class_weights=.* >= 0"),
    (losses.cross_entropy, {"class_weights": [0, 0, 0]}, "class_weights=.* not all"),
    (losses.cross_entropy, {"logit_adjustment": [1, np.nan, 1]}, "logit_adjustment=.* finite"),
    (losses.cross_entropy, {"logit_adjustment": "prior"}, "logit_adjustment='prior'"),
    (losses.cross_entropy, {"adjustment_temperature": -1.0}, "adjustment_temperature=-1.0"),
    (losses.focal_cross_entropy, {"gamma": -1.0}, "gamma=-1.0: use a number >= 0"),
    (losses.focal_cross_entropy, {"gamma": np.inf}, "gamma=inf"),
    (losses.focal_cross_entropy, {"gamma": "2"}, "gamma='2'"),
    (losses.binary_focal_cross_entropy, {"gamma": np.nan}, "gamma=nan"),
    (losses.binary_cross_entropy, {"positive_weight": [1.0]}, "positive_weight=.*use 3"),
    (losses.binary_cross_entropy, {"positive_weight": [1, 1, -2]}, "positive_weight=.* >= 0"),
    (losses.dice_loss, {"unit_weights": [1.0]}, "unit_weights=.*use 3"),
    (losses.binary_cross_entropy_and_dice, {"dice_weight": -1.0}, "dice_weight=-1.0: .* >= 0"),
    (losses.binary_cross_entropy_and_dice, {"label_smoothing": 2.0}, "label_smoothing=2.0"),
  ],
)
def test_an_option_that_makes_no_sense_is_named_when_the_loss_is_traced(loss, options, said):
  binary = loss not in (losses.cross_entropy, losses.focal_cross_entropy)
  shapes = jax.tree.map(jax.typeof, batch("binary_cross_entropy" if binary else "cross_entropy"))
  with pytest.raises(ValueError, match=said) as error:
    jax.eval_shape(functools.partial(loss, **options), *shapes)
  assert "\n" not in str(error.value)


def test_weights_may_be_traced():
  args = batch("cross_entropy")
  traced = jax.jit(lambda w: losses.cross_entropy(*args, class_weights=w))(WEIGHTS)
  expected = losses.cross_entropy(*args, class_weights=WEIGHTS)
  np.testing.assert_allclose(traced, expected, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_binary_cross_entropy_is_the_textbook_formula(weight):
  logits, target, mask = batch("binary_cross_entropy")
  p, w = special.expit(logits), 1 if weight is None else weight
  entries = -(w * target * np.log(p) + (1 - target) * np.log(1 - p))
  np.testing.assert_allclose(
    losses.binary_cross_entropy(logits, target, mask, weight), entries[mask > 0].mean(), rtol=1e-5
  )


def test_binary_cross_entropy_survives_extreme_logits():
  logits, ones = jnp.array([[1e4, -1e4]]), jnp.ones((1, 2))
  loss, gradient = jax.value_and_grad(losses.binary_cross_entropy)(logits, ones, ones)
  assert loss == 5e3
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_dice_loss_is_the_formula_of_its_authors_over_the_labelled_entries(weight):
  logits, target, mask = batch("dice_loss")
  p = special.expit(logits)
  entries = 1 - (2 * target * p + 1) / (target**2 + p**2 + 1)
  expected = (entries * (1 if weight is None else weight))[mask > 0].mean()
  np.testing.assert_allclose(losses.dice_loss(logits, target, mask, weight), expected, rtol=1e-5)


def test_dice_loss_is_nothing_where_all_is_right_and_a_half_where_all_is_wrong():
  target, ones = jnp.array([[0.0, 1.0]]), jnp.ones((1, 2))
  of = jax.value_and_grad(losses.dice_loss)
  for logit, expected in ((1e4, 0.0), (-1e4, 0.5)):
    loss, slope = of((2 * target - 1) * logit, target, ones)
    np.testing.assert_allclose(loss, expected, atol=1e-6)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_cross_entropy_and_dice_are_of_the_same_smoothed_labels(weight):
  logits, target, mask = batch("binary_cross_entropy_and_dice")
  p, y, w = special.expit(logits), 0.9 * target + 0.05, 1 if weight is None else weight
  entries = -(y * np.log(p) + (1 - y) * np.log(1 - p))
  entries = w * (entries + 0.5 * (1 - (2 * y * p + 1) / (y**2 + p**2 + 1)))
  found = losses.binary_cross_entropy_and_dice(
    logits, target, mask, label_smoothing=0.1, unit_weights=weight
  )
  np.testing.assert_allclose(found, entries[mask > 0].mean(), rtol=1e-5)


def test_without_dice_and_smoothing_it_is_binary_cross_entropy():
  args = batch("binary_cross_entropy")
  found = jax.value_and_grad(losses.binary_cross_entropy_and_dice)(*args, 0.0)
  plain = jax.value_and_grad(losses.binary_cross_entropy)(*args)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, plain)


def test_mean_squared_error_is_the_textbook_formula():
  prediction, target, mask = batch("mean_squared_error")
  expected = np.nanmean((prediction - target) ** 2)
  np.testing.assert_allclose(
    losses.mean_squared_error(prediction, target, mask), expected, rtol=1e-5
  )


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_an_unlabelled_batch_has_exactly_zero_loss_and_gradient(name):
  prediction, target, mask = batch(name)
  prediction[:] = target[:] = np.nan
  loss, gradient = jax.jit(jax.value_and_grad(ALL_LOSSES[name]))(prediction, target, 0 * mask)
  assert loss == 0
  assert (gradient == 0).all()


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_unlabelled_entries_get_no_gradient_and_padding_changes_nothing(name):
  prediction, target, mask = batch(name)
  loss, gradient = jax.value_and_grad(ALL_LOSSES[name])(prediction, target, mask)
  assert (np.asarray(gradient)[mask == 0] == 0).all()
  assert np.isfinite(gradient).all()
  padded = [np.concatenate([x, np.zeros_like(x)]) for x in (prediction, target, mask)]
  np.testing.assert_allclose(ALL_LOSSES[name](*padded), loss, rtol=1e-6)


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_losses_are_float32_whatever_the_activations_are(name):
  prediction, target, mask = batch(name)
  assert ALL_LOSSES[name](prediction.astype(jnp.bfloat16), target, mask).dtype == jnp.float32


@pytest.mark.parametrize("name", ALL_LOSSES)
def test_a_batch_sharded_over_devices_gives_the_loss_and_gradient_of_the_whole(name):
  whole = batch(name)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(whole, NamedSharding(mesh, PartitionSpec("data")))
  step = jax.jit(jax.value_and_grad(ALL_LOSSES[name]))
  for one, many in zip(step(*whole), step(*sharded), strict=True):
    np.testing.assert_allclose(one, many, rtol=1e-5, atol=1e-8)


def test_labelled_says_whether_any_entry_is():
  mask = np.zeros((4, 2))
  assert losses.labelled(mask) == 0
  mask[2, 1] = 1
  assert losses.labelled(mask) == 1


def test_labelled_of_an_axis_says_it_for_each_dimension():
  mask = np.zeros((4, 2))
  mask[2, 1] = 1
  np.testing.assert_array_equal(losses.labelled(mask, 0), [0, 1])


# Variances that the model predicts.


def uncertain_batch(name, columns=3):
  prediction, target, mask = batch(name, columns=columns)
  s = np.random.default_rng(1).uniform(-2, 2, prediction.shape).astype(np.float32)
  s[~(mask > 0)] = np.nan
  return prediction, target, mask, s


def test_gaussian_nll_is_the_normal_density_s_logarithm_but_for_its_constant():
  prediction, target, mask, s = uncertain_batch("mean_squared_error")
  keep = mask > 0
  density = stats.norm.logpdf(target[keep], prediction[keep], np.exp(s[keep] / 2))
  expected = -density.mean() - np.log(2 * np.pi) / 2
  found = losses.gaussian_nll(prediction, target, mask, s)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  plain = losses.mean_squared_error(prediction, target, mask)
  np.testing.assert_allclose(losses.gaussian_nll(prediction, target, mask), plain / 2, rtol=1e-6)


def test_a_predicted_log_variance_is_clipped_and_can_only_come_back():
  s = jnp.array([[7.0, 7.0, -7.0, -7.0]])
  error = jnp.exp(jnp.array([[4.0, 2.0, -4.0, -2.0]]))
  of = lambda s: losses.gaussian_nll(error, 0 * error, jnp.ones((1, 4)), s)
  loss, slope = jax.value_and_grad(of)(s)
  limit = np.array([6, 6, -6, -6])
  expected = np.exp(-limit) * np.asarray(error[0]) ** 2 / 2 + limit / 2
  np.testing.assert_allclose(loss, expected.mean(), rtol=1e-5)
  np.testing.assert_array_equal(slope[0] == 0, [True, False, True, False])
  assert slope[0, 1] > 0 > slope[0, 3]


def test_the_mean_of_many_noisy_softmaxes_is_the_integral():
  f, sigma = np.array([0.7, -0.2]), 1.5
  # Of two classes the difference of the logits is normal, of variance 2 sigma^2.
  x, weight = special.roots_hermitenorm(80)
  weight = weight / weight.sum()
  p = (weight * special.expit(f[0] - f[1] + np.sqrt(2) * sigma * x)).sum()
  args = [np.array(x, np.float32) for x in ([f], [[0.8, 0.2]], [1.0])]
  s, key = np.full((1, 1), 2 * np.log(sigma), np.float32), jax.random.key(0)
  found = losses.heteroscedastic_cross_entropy(*args, s, key, samples=40_000)
  np.testing.assert_allclose(found, -0.8 * np.log(p) - 0.2 * np.log(1 - p), rtol=0.01)
  q = [(weight * special.expit(v + sigma * x)).sum() for v in f]
  binary = losses.heteroscedastic_binary_cross_entropy(
    args[0], np.array([[1, 0]], np.float32), np.ones((1, 2)), s * np.ones((1, 2)), key, 40_000
  )
  np.testing.assert_allclose(binary, -(np.log(q[0]) + np.log(1 - q[1])) / 2, rtol=0.01)


def test_without_samples_the_logits_have_a_temperature():
  logits, target, mask, s = uncertain_batch("cross_entropy")
  found = losses.heteroscedastic_cross_entropy(logits, target, mask, s, samples=0)
  expected = losses.cross_entropy(logits / np.exp(s / 2), target, mask)
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  logits, target, mask, s = uncertain_batch("binary_cross_entropy")
  found = losses.heteroscedastic_binary_cross_entropy(logits, target, mask, s, samples=0)
  expected = losses.binary_cross_entropy(logits / np.exp(s / 2), target, mask)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("s", [None, np.full((64, 3), -60, np.float32)])
def test_logits_without_uncertainty_have_the_plain_loss(s):
  options = dict(label_smoothing=0.1, class_weights=WEIGHTS, logit_adjustment=[5, 0, 3])
  args, key = batch("cross_entropy"), None if s is None else jax.random.key(0)
  tolerance = dict(rtol=1e-6) if s is None else dict(rtol=0.01)  # sigma is exp(-3) at least
  found = losses.heteroscedastic_cross_entropy(*args, s, key, **options)
  np.testing.assert_allclose(found, losses.cross_entropy(*args, **options), **tolerance)
  args = batch("binary_cross_entropy")
  found = losses.heteroscedastic_binary_cross_entropy(*args, s, key, positive_weight=WEIGHTS)
  expected = losses.binary_cross_entropy(*args, positive_weight=WEIGHTS)
  np.testing.assert_allclose(found, expected, **tolerance)


def test_noise_is_that_of_the_key_and_uncertainty_of_a_wrong_answer_pays():
  logits, target = np.array([[3.0, 0, 0]], np.float32), np.eye(3, dtype=np.float32)
  loss = lambda right, s, key: losses.heteroscedastic_cross_entropy(
    logits, target[[0 if right else 1]], np.ones(1), np.full((1, 1), s, np.float32), key, 1000
  )
  first, second = jax.random.split(jax.random.key(0))
  assert loss(True, 1, first) == loss(True, 1, first) != loss(True, 1, second)
  assert loss(False, 3, first) < loss(False, -3, first)
  assert loss(True, 3, first) > loss(True, -3, first)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    ({"samples": -1}, "samples=-1: use an integer >= 0"),
    ({"samples": 2.5}, "samples=2.5"),
    ({"samples": 3}, "samples=3 of uncertain logits need a key"),
  ],
)
def test_samples_that_make_no_sense_are_named(options, said):
  args = uncertain_batch("cross_entropy")
  for loss in (losses.heteroscedastic_cross_entropy, losses.heteroscedastic_binary_cross_entropy):
    with pytest.raises(ValueError, match=said):
      loss(*args[:2], np.ones((64, 3)), args[3], **options)


# Weights that are learned.

KINDS = ["simple", "kendall", "kendall of a squared error", "liebel"]
# What a loss weighs, and what is added, at s.
FORMS = {
  "simple": (lambda s: np.exp(-s), lambda s: s),
  "kendall": (lambda s: np.exp(-s), lambda s: s / 2),
  "kendall of a squared error": (lambda s: np.exp(-s) / 2, lambda s: s / 2),
  "liebel": (lambda s: np.exp(-s) / 2, lambda s: np.log1p(np.exp(s))),
}
# s where the term is least. Of liebel u = exp(s) solves u^2 = (1 + u) L / 2.
STATIONARY = {
  "simple": lambda loss: np.log(loss),
  "kendall": lambda loss: np.log(2 * loss),
  "kendall of a squared error": lambda loss: np.log(loss),
  "liebel": lambda loss: np.log(loss / 4 + np.sqrt(loss**2 / 16 + loss / 2)),
}


def weighted(kind, task_losses, labelled, s):
  gaussian = list(task_losses) if kind == "kendall of a squared error" else []
  kind = kind.partition(" ")[0]
  return losses.uncertainty_weighted(task_losses, labelled, s, kind, gaussian)


def total_and_slopes(kind, task_losses, labelled, s):
  of = lambda task_losses, s: weighted(kind, task_losses, labelled, s)[0]
  return jax.value_and_grad(of, (0, 1))(
    jax.tree.map(jnp.float32, task_losses), jax.tree.map(jnp.float32, s)
  )


@pytest.mark.parametrize("kind", KINDS)
def test_each_form_is_its_formula_and_reports_the_weights_it_used(kind):
  task_losses, s = {"va": 0.5, "au": 2.0}, {"va": 0.3, "au": -1.0}
  total, weights = weighted(kind, task_losses, dict.fromkeys(s, 1.0), s)
  weight, penalty = FORMS[kind]
  expected = sum(weight(s[task]) * task_losses[task] + penalty(s[task]) for task in s)
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  for task in s:
    np.testing.assert_allclose(weights[task], weight(s[task]), rtol=1e-6)


def test_kendall_halves_what_is_said_to_be_gaussian_and_nothing_else():
  task_losses, s = {"va": 0.5, "au": 2.0}, {"va": 0.3, "au": -1.0}
  _, weights = losses.uncertainty_weighted(task_losses, {"va": 1, "au": 1}, s, "kendall")
  np.testing.assert_allclose(weights["va"], np.exp(-0.3) / 2, rtol=1e-6)
  np.testing.assert_allclose(weights["au"], np.exp(1.0), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [0.05, 0.7, 30.0])
def test_each_form_has_its_minimum_where_its_closed_form_says(kind, loss):
  best = STATIONARY[kind](loss)
  _, (_, slopes) = total_and_slopes(kind, {"va": loss}, {"va": True}, {"va": best})
  np.testing.assert_allclose(slopes["va"], 0, atol=2e-6)
  at = lambda s: weighted(kind, {"va": loss}, {"va": True}, {"va": s})[0]
  assert at(best) < min(at(best - 0.1), at(best + 0.1))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_descent_on_the_log_variances_reaches_the_minimum(kind):
  task_losses = {"va": 0.3, "au": jnp.array([0.9, 4.0])}
  labelled, s = {"va": 1.0, "au": jnp.ones(2)}, {"va": 0.0, "au": jnp.zeros(2)}
  of = lambda s: weighted(kind, task_losses, labelled, s)[0]
  descend = lambda _, s: jax.tree.map(lambda x, g: x - 0.3 * g, s, jax.grad(of)(s))
  found = jax.lax.fori_loop(0, 300, descend, s)
  for task in s:
    expected = STATIONARY[kind](np.asarray(task_losses[task]))
    np.testing.assert_allclose(found[task], expected, atol=1e-4)


def test_a_scaled_loss_shifts_simple_s_and_leaves_the_profiled_gradient():
  losses_of = lambda theta, c: {"va": c * (theta[0] ** 2 + 0.1), "au": jnp.cosh(theta.sum())}
  theta = jnp.array([0.4, -1.3])
  stationary = lambda c: {t: jnp.log(x) for t, x in losses_of(theta, c).items()}
  shift = jax.tree.map(lambda a, b: a - b, stationary(7.0), stationary(1.0))
  np.testing.assert_allclose([shift["va"], shift["au"]], [np.log(7), 0], atol=1e-6)

  def profiled(c):
    of = lambda theta: weighted("simple", losses_of(theta, c), {"va": 1, "au": 1}, stationary(c))[0]
    return jax.grad(of)(theta)

  np.testing.assert_allclose(profiled(7.0), profiled(1.0), rtol=1e-5)
  of_logs = jax.grad(lambda theta: sum(jnp.log(loss) for loss in losses_of(theta, 1).values()))
  np.testing.assert_allclose(profiled(7.0), of_logs(theta), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_without_labels_drops_both_its_loss_and_its_uncertainty(kind):
  task_losses, s = {"va": 0.5, "au": 0.0}, {"va": 0.2, "au": -0.7}
  total, (loss_slopes, slopes) = total_and_slopes(kind, task_losses, {"va": True, "au": False}, s)
  alone, _ = weighted(kind, {"va": 0.5}, {"va": True}, {"va": 0.2})
  assert total == alone
  assert loss_slopes["au"] == slopes["au"] == 0
  assert loss_slopes["va"] != 0 != slopes["va"]
  assert weighted(kind, task_losses, {"va": 1, "au": 0}, s)[1]["au"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_dimension_without_labels_drops_out_and_leaves_the_other_as_if_it_were_alone(kind):
  s, labelled = jnp.array([0.2, -0.7]), jnp.array([1.0, 0.0])
  task_losses = {"va": jnp.array([0.5, 0.0])}
  total, (loss_slopes, slopes) = total_and_slopes(kind, task_losses, {"va": labelled}, {"va": s})
  alone, _ = weighted(kind, {"va": 0.5}, {"va": True}, {"va": 0.2})
  np.testing.assert_allclose(total, alone, rtol=1e-6)
  assert loss_slopes["va"][1] == slopes["va"][1] == 0
  assert loss_slopes["va"][0] != 0 != slopes["va"][0]
  nothing, (_, slopes) = total_and_slopes(kind, task_losses, {"va": 0 * labelled}, {"va": s})
  assert nothing == 0
  assert (slopes["va"] == 0).all()


@pytest.mark.parametrize("kind", [*KINDS, "equal"])
@pytest.mark.parametrize("loss", [losses.ccc_loss, losses.mean_squared_error])
def test_dimensions_of_one_log_variance_weigh_what_the_task_does(kind, loss):
  prediction, target, mask = batch("ccc_loss", columns=2)
  mask = np.repeat(mask[:, :1], 2, 1)
  args = [np.where(mask > 0, x, 0) for x in (prediction, target)] + [mask]
  both = losses.per_dimension(loss)(*args)
  assert both.shape == (2,)
  one, _ = weighted(kind, {"va": loss(*args)}, {"va": True}, {"va": 0.4})
  each, weights = weighted(kind, {"va": both}, {"va": np.ones(2)}, {"va": np.full(2, 0.4)})
  np.testing.assert_allclose(each, one, rtol=1e-6)
  assert weights["va"].shape == (2,)


@pytest.mark.parametrize("loss", [losses.ccc_loss, losses.mean_squared_error])
def test_the_loss_of_a_dimension_is_that_of_it_alone(loss):
  args = batch("ccc_loss", columns=3)
  args[2][:, 1] = 0
  found = losses.per_dimension(loss)(*args)
  for column in range(3):
    alone = loss(*(x[:, [column]] for x in args))
    np.testing.assert_allclose(found[column], alone, rtol=1e-6)
  assert found[1] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [6.0, -6.0])
def test_a_log_variance_beyond_its_limit_can_only_come_back(kind, limit):
  weight, penalty = FORMS[kind]
  slope_of_penalty = {"simple": 1.0, "liebel": special.expit(limit)}.get(kind, 0.5)
  balance = slope_of_penalty / weight(limit)  # the loss whose s wants to be at the limit
  for factor in (0.5, 2.0):
    loss = factor * balance
    s = {"va": 1.2 * limit}
    total, (_, slopes) = total_and_slopes(kind, {"va": loss}, {"va": True}, s)
    np.testing.assert_allclose(total, weight(limit) * loss + penalty(limit), rtol=1e-5)
    outward = (factor > 1) == (limit > 0)  # a large loss wants a large s
    expected = 0.0 if outward else slope_of_penalty - weight(limit) * loss
    np.testing.assert_allclose(slopes["va"], expected, rtol=1e-4)
    assert outward or slopes["va"] * limit > 0  # down the slope is back


def test_equal_weights_are_the_plain_sum_and_need_no_log_variance():
  task_losses = {"va": 0.5, "au": 2.0, "expression": 0.0}
  labelled = {"va": True, "au": True, "expression": False}
  total, weights = losses.uncertainty_weighted(task_losses, labelled, {}, "equal")
  assert total == 2.5
  assert weights == {"va": 1, "au": 1, "expression": 0}


def test_unknown_kinds_and_tasks_are_errors_that_name_what_is_allowed():
  with pytest.raises(ValueError, match="kind 'kendal' .* use one of 'simple', 'kendall'"):
    losses.uncertainty_weighted({}, {}, {}, kind="kendal")
  with pytest.raises(ValueError, match=r"log_variances has no 'va' .* it has \['au'\]"):
    losses.uncertainty_weighted({"va": 1.0}, {"va": True}, {"au": 0.0})
  with pytest.raises(ValueError, match=r"labelled has no 'va'"):
    losses.uncertainty_weighted({"va": 1.0}, {}, {"va": 0.0}, "equal")


def test_jensen_shannon_is_entropy_of_the_mean_less_mean_entropy():
  logits = np.random.default_rng(0).normal(scale=2, size=(3, 5, 4)).astype(np.float32)
  mask = np.array([1, 0, 1, 1, 0])
  p = special.softmax(logits.astype(np.float64), -1)
  rows = stats.entropy(p.mean(0), axis=-1) - stats.entropy(p, axis=-1).mean(0)
  found = losses.jensen_shannon(logits, mask)
  np.testing.assert_allclose(found, rows[mask > 0].mean(), rtol=1e-5)
  wild = np.where(mask[:, None] > 0, logits, np.nan)
  value, slope = jax.value_and_grad(losses.jensen_shannon)(wild, mask)
  assert value == found
  assert ((np.abs(slope) > 0).any((0, 2)) == (mask > 0)).all()
  assert losses.jensen_shannon(logits, np.zeros(5)) == 0


def test_jensen_shannon_is_from_0_where_all_agree_to_the_logarithm_of_how_many_differ():
  logits = np.random.default_rng(0).normal(scale=3, size=(4, 4)).astype(np.float32)
  mask = np.ones(4)
  np.testing.assert_allclose(losses.jensen_shannon([logits, logits + 1], mask), 0, atol=1e-6)
  others = 40 * np.eye(4, dtype=np.float32)
  for count in (2, 3):
    apart = [np.roll(others, shift, 0) for shift in range(count)]
    np.testing.assert_allclose(losses.jensen_shannon(apart, mask), np.log(count), rtol=1e-5)
  some = [losses.jensen_shannon([logits, logits[::-1] * scale], mask) for scale in (0.1, 1, 10)]
  assert all(0 < value < np.log(2) for value in some)
