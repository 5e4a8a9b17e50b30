import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special

from affjax import losses

WEIGHTS = np.array([0.5, 1, 7])
ROW_LOSSES = {
  "cross_entropy": losses.cross_entropy,
  "weighted_cross_entropy": functools.partial(losses.cross_entropy, class_weights=WEIGHTS),
  "adjusted_cross_entropy": functools.partial(losses.cross_entropy, logit_adjustment=[5, 0, 3]),
  "focal_cross_entropy": losses.focal_cross_entropy,
}
ENTRY_LOSSES = {
  "ccc_loss": losses.ccc_loss,
  "binary_cross_entropy": losses.binary_cross_entropy,
  "weighted_binary_cross_entropy": functools.partial(
    losses.binary_cross_entropy, positive_weight=WEIGHTS
  ),
  "binary_focal_cross_entropy": losses.binary_focal_cross_entropy,
  "mean_squared_error": losses.mean_squared_error,
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
  ],
)
def test_an_option_that_makes_no_sense_is_named_when_the_loss_is_traced(loss, options, said):
  binary = loss in (losses.binary_cross_entropy, losses.binary_focal_cross_entropy)
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


def total_and_slopes(task_losses, labelled, s):
  def total(task_losses, s):
    return losses.uncertainty_weighted(task_losses, labelled, s)[0]

  return jax.value_and_grad(total, (0, 1))(task_losses, s)


def test_simple_uncertainty_is_stationary_at_the_logarithm_of_the_loss():
  task_losses = {"va": 0.5, "expression": 2.0, "au": 0.3}
  s = {task: jnp.log(loss) for task, loss in task_losses.items()}
  total, (_, slopes) = total_and_slopes(task_losses, dict.fromkeys(s, True), s)
  np.testing.assert_allclose(total, sum(1 + np.log(loss) for loss in task_losses.values()), 1e-6)
  np.testing.assert_allclose(list(slopes.values()), 0, atol=1e-6)


def test_simple_uncertainty_reports_the_weights_it_used():
  total, weights = losses.uncertainty_weighted(
    {"va": 0.5, "au": 2.0}, {"va": 1.0, "au": 1.0}, {"va": 0.3, "au": -1.0}
  )
  np.testing.assert_allclose([weights["va"], weights["au"]], np.exp([-0.3, 1.0]), rtol=1e-6)
  np.testing.assert_allclose(total, 0.5 * np.exp(-0.3) + 0.3 + 2 * np.exp(1) - 1, rtol=1e-6)


def test_a_task_without_labels_drops_both_its_loss_and_its_uncertainty():
  task_losses = {"va": 0.5, "au": 0.0}
  s = {"va": 0.2, "au": -0.7}
  total, (loss_slopes, slopes) = total_and_slopes(task_losses, {"va": True, "au": False}, s)
  alone, _ = losses.uncertainty_weighted({"va": 0.5}, {"va": True}, {"va": 0.2})
  assert total == alone
  assert loss_slopes["au"] == 0
  assert slopes["au"] == 0


@pytest.mark.parametrize(
  ("s", "loss", "slope"),
  [
    (7.0, np.exp(7.0), 0.0),  # wants further out: held
    (7.0, 1.0, 1 - np.exp(-6.0)),  # wants back: free
    (-7.0, np.exp(-7.0), 0.0),
    (-7.0, 1.0, 1 - np.exp(6.0)),
  ],
)
def test_a_log_variance_beyond_its_limit_can_only_come_back(s, loss, slope):
  total, (_, slopes) = total_and_slopes({"va": loss}, {"va": True}, {"va": s})
  limit = np.sign(s) * 6
  np.testing.assert_allclose(total, np.exp(-limit) * loss + limit, rtol=1e-5)
  np.testing.assert_allclose(slopes["va"], slope, rtol=1e-5)


def test_unknown_kinds_and_tasks_are_errors_that_name_what_is_allowed():
  with pytest.raises(ValueError, match="kind 'kendal' .* use 'simple'"):
    losses.uncertainty_weighted({}, {}, {}, kind="kendal")
  with pytest.raises(ValueError, match=r"log_variances has no 'va' .* it has \['au'\]"):
    losses.uncertainty_weighted({"va": 1.0}, {"va": True}, {"au": 0.0})
