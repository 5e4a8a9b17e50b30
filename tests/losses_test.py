import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import special

from affjax import losses

ROW_LOSSES = {"cross_entropy": losses.cross_entropy}
ENTRY_LOSSES = {
  "ccc_loss": losses.ccc_loss,
  "binary_cross_entropy": losses.binary_cross_entropy,
  "mean_squared_error": losses.mean_squared_error,
}
ALL_LOSSES = ROW_LOSSES | ENTRY_LOSSES


def batch(name, rows=64, columns=3, seed=0):
  """Prediction, target, mask; what is not labelled is a NaN."""
  rng = np.random.default_rng(seed)
  prediction = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
  if name == "cross_entropy":
    target = rng.dirichlet(np.ones(columns), rows).astype(np.float32)
    mask = rng.uniform(size=rows) < 0.6
  else:
    target = rng.uniform(0, 1, (rows, columns)).astype(np.float32)
    mask = rng.uniform(size=(rows, columns)) < 0.6
  target[~mask] = np.nan
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


@pytest.mark.parametrize("weight", [None, np.array([0.5, 1, 7])])
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
  target[:] = np.nan
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
