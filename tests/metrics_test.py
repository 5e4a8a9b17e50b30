"""T1 to T3 are scores that participants printed in public notebooks; the integer counts behind
them, recovered from the printed digits, are below. The labels themselves are licensed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import optimize, special

from affjax import metrics

# T1: the validation split of the ABAW4 LSD task, six classes.
LSD_TARGETS = [804, 252, 523, 1714, 774, 603]
LSD_HITS = [644, 224, 72, 1503, 624, 422]
LSD_PREDICTED = [743, 329, 135, 1770, 969, 724]
# T2: the validation split of s-Aff-Wild2, twelve action units, 26,876 frames.
AU_FRAMES = 26_876
AU_TP = [3302, 1248, 3431, 5473, 11068, 8412, 5658, 367, 55, 185, 19172, 1156]
AU_FP = [2939, 1832, 3200, 5029, 6183, 4018, 3160, 4182, 238, 749, 4076, 2325]
AU_FN = [2229, 1306, 2011, 3345, 2156, 3009, 2661, 415, 702, 623, 1255, 1778]
EXPRESSION_TARGETS = [1886, 487, 565, 1254, 3751, 1893, 1003, 4601]


def ccc(x, y):
  return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def frames(rows=1000, columns=2, mean=0.3, seed=0):
  rng = np.random.default_rng(seed)
  target = np.clip(mean + 0.2 * rng.standard_normal((rows, columns)), -1, 1)
  prediction = np.clip(0.5 * target + 0.1 * rng.standard_normal((rows, columns)), -1, 1)
  return prediction.astype(np.float32), target.astype(np.float32)


def in_batches(metric, arrays, sizes, **options):
  """Device batches, merged on the host in the order given."""
  of_batch = jax.jit(functools.partial(metric.from_model_output, **options))
  ends = np.cumsum(sizes)
  batches = [of_batch(*(x[e - s : e] for x in arrays)) for s, e in zip(sizes, ends, strict=True)]
  return functools.reduce(lambda a, b: a.merge(b), map(metrics.to_host, batches), metric.empty())


def au_counts():
  tp, fp, fn = (np.array(x) for x in (AU_TP, AU_FP, AU_FN))
  return metrics.BinaryCounts(tp, fp, fn, AU_FRAMES - tp - fp - fn)


def test_ccc_is_the_textbook_formula_over_the_labelled_entries():
  prediction, target = frames()
  mask = np.random.default_rng(1).uniform(size=target.shape) < 0.7
  target[~mask] = -5
  expected = [ccc(prediction[mask[:, k], k], target[mask[:, k], k]) for k in range(2)]
  np.testing.assert_allclose(jax.jit(metrics.ccc)(prediction, target, mask), expected, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_ccc_merged_over_any_split_equals_ccc_of_the_whole(seed):
  prediction, target = (x.astype(np.float64) for x in frames(2000, seed=seed))
  cuts = np.sort(np.random.default_rng(seed).integers(0, 2000, 9))
  parts = list(zip(np.split(prediction, cuts), np.split(target, cuts), strict=True))

  def moments(p, t):
    n, p0, t0 = len(p), p.mean(0) if len(p) else np.zeros(2), t.mean(0) if len(p) else np.zeros(2)
    products = ((p - p0) ** 2, (t - t0) ** 2, (p - p0) * (t - t0))
    return metrics.CCC(np.full(2, n), p0, t0, *(x.sum(0) for x in products))

  merged = functools.reduce(lambda a, b: a.merge(b), (moments(*part) for part in parts))
  expected = [ccc(prediction[:, k], target[:, k]) for k in range(2)]
  np.testing.assert_allclose(merged.compute(), expected, rtol=0, atol=1e-12)
  of_batches = in_batches(metrics.CCC, frames(2000, seed=seed), [250] * 8)
  np.testing.assert_allclose(of_batches.compute(), expected, rtol=0, atol=3e-7)


MILLION = 10**6


@functools.cache
def million(mean, spread):
  """float32 predictions and targets in [-1, 1], and their CCC by NumPy in float64."""
  rng = np.random.default_rng(0)
  noise = lambda: spread * rng.standard_normal((MILLION, 2))
  target = np.clip(mean + noise(), -1, 1)
  pair = [np.clip(x, -1, 1).astype(np.float32) for x in (target + noise(), target)]
  wide = [x.astype(np.float64) for x in pair]
  return *pair, [ccc(wide[0][:, k], wide[1][:, k]) for k in range(2)]


@pytest.mark.parametrize("spread", [0.02, 0.3])
@pytest.mark.parametrize("mean", [0.0, 0.6, 0.95])
def test_ccc_of_a_million_frames_agrees_with_float64(mean, spread):
  prediction, target, expected = million(mean, spread)
  close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=0, atol=1e-6)
  close(jax.jit(metrics.ccc)(prediction, target))
  close(jax.jit(metrics.ccc)(prediction[:, 0], target[:, 0]), desired=expected[0])
  for sizes in ([MILLION], [1000] * 1000, [1, 7, 499_992, 500_000]):
    merged = in_batches(metrics.CCC, (prediction, target), sizes)
    assert merged.count.tolist() == [MILLION] * 2
    close(merged.compute())


@pytest.mark.parametrize("mean", [0.0, 0.6, 0.95])
def test_ccc_of_a_million_frames_on_eight_devices_with_padding_agrees_with_float64(mean):
  prediction, target, expected = million(mean, 0.02)
  padding = np.full((24, 2), np.nan, np.float32)
  mask = np.concatenate([np.ones((MILLION, 2), np.float32), np.zeros((24, 2), np.float32)])
  arrays = (np.concatenate([prediction, padding]), np.concatenate([target, padding]), mask)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("data")))
  np.testing.assert_allclose(jax.jit(metrics.ccc)(*sharded), expected, rtol=0, atol=1e-6)
  merged = metrics.to_host(jax.jit(metrics.CCC.from_model_output)(*sharded))
  np.testing.assert_allclose(merged.compute(), expected, rtol=0, atol=1e-6)


def random_labels(rng, rows, masked):
  """(prediction, target, mask) of VA, of expressions and units."""
  values = lambda: rng.uniform(-1, 1, (rows, 2))
  kept = lambda *shape: rng.uniform(size=shape) >= masked
  units = rng.uniform(size=(rows, 3)) < [0, 0.3, 1]
  return (
    (values(), values(), kept(rows, 2)),
    (rng.integers(0, 5, rows), rng.integers(0, 4, rows), kept(rows)),
    (rng.integers(0, 2, (rows, 3)), units, kept(rows, 3)),
  )


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("masked", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("seed", range(3))
def test_partly_labelled_scores_are_those_of_scikit_learn_and_numpy(seed, rows, masked):
  """Six classes of which the last never occurs and the last but one only as a prediction."""
  va, expression, au = random_labels(np.random.default_rng(seed), rows, masked)
  for k in range(2):
    p, t = (x[va[2][:, k], k] for x in va[:2])
    expected = np.nan_to_num(ccc(p, t)) if len(p) > 1 else 0
    np.testing.assert_allclose(metrics.ccc(*va)[k], expected, rtol=1e-4, atol=1e-6)
  p, t = (x[expression[2]] for x in expression[:2])
  scores = metrics.Confusion.from_classes(*expression, num_classes=6).compute()
  if len(t):
    reference = sklearn.metrics.f1_score(t, p, labels=range(6), average=None, zero_division=0)
    np.testing.assert_allclose(scores["f1_per_class"], reference, rtol=1e-6)
    np.testing.assert_allclose(scores["accuracy"], (p == t).mean(), rtol=1e-6)
  else:
    assert scores["f1"] == scores["accuracy"] == 0
  units = metrics.f1(*au)
  for k in range(3):
    p, t = (x[au[2][:, k], k] for x in au[:2])
    expected = sklearn.metrics.f1_score(t, p, zero_division=0) if len(t) else 0
    np.testing.assert_allclose(units[k], expected, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.95, -1 / 3])
def test_ccc_is_exactly_zero_for_constants_and_for_nothing(value):
  constant = np.full((1001, 2), value, np.float32)
  _, target = frames(1001)
  assert (metrics.ccc(constant, constant) == 0).all()
  assert (metrics.ccc(constant, target) == 0).all()
  assert (metrics.ccc(constant, target, np.zeros((1001, 2))) == 0).all()
  assert (in_batches(metrics.CCC, (constant, constant), [500, 501]).compute() == 0).all()
  assert (metrics.CCC.empty().compute() == 0).all()


def lsd_confusion():
  """[6, 6] counts. Any with these margins and this diagonal will do: a transport problem."""
  hits = np.array(LSD_HITS)
  rows, columns = np.array(LSD_TARGETS) - hits, np.array(LSD_PREDICTED) - hits
  sums = np.concatenate([np.kron(np.eye(6), np.ones(6)), np.kron(np.ones(6), np.eye(6))])
  errors = optimize.linprog(np.eye(6).ravel(), A_eq=sums, b_eq=np.concatenate([rows, columns])).x
  counts = np.round(errors).astype(int).reshape(6, 6)
  assert (counts.diagonal() == 0).all()
  return counts + np.diag(hits)


def test_t1_macro_f1_and_accuracy_of_published_expression_counts():
  scores = metrics.Confusion(lsd_confusion()).compute()
  assert scores["f1"] == pytest.approx(0.6728896450510998, abs=1e-15)
  assert scores["accuracy"] == pytest.approx(0.7471092077087794, abs=1e-15)
  expected = [0.832579185520362, 0.7710843373493975, 0.2188449848024316]
  expected += [0.8628013777267509, 0.7160068846815835, 0.6360211002260738]
  np.testing.assert_allclose(scores["f1_per_class"], expected, rtol=0, atol=1e-15)


def test_t2_f1_of_published_action_unit_counts():
  scores = au_counts().compute()
  expected = [0.56099218, 0.44302449, 0.56837571, 0.56656315, 0.72636587, 0.70537923]
  expected += [0.66032561, 0.13768524, 0.1047619, 0.21239954, 0.87793932, 0.3604053]
  np.testing.assert_allclose(scores["f1_per_unit"], expected, rtol=0, atol=5e-9)
  assert scores["f1"] == pytest.approx(0.49368479684460276, abs=1e-15)


def test_t3_the_multi_task_score_of_published_parts():
  units = [0.5984711167152652, 0.40463948343895734, 0.5947806596221582, 0.5928256765261171]
  units += [0.7180126099596028, 0.7140917254369442, 0.6898298097874095, 0.21992535170829744]
  units += [0.10950041931232778, 0.17073738078622935, 0.8406870469587141, 0.34769289680260385]
  va = np.array([0.49119296465613055, 0.4716749734278017])
  assert va.mean() == pytest.approx(0.4814339690419661, abs=1e-15)
  assert np.mean(units) == pytest.approx(0.5000995147545523, abs=1e-15)
  p = metrics.p_mtl(va, 0.32711110612647154, np.array(units))
  assert p == pytest.approx(1.30864458992299, abs=1e-14)
  va = np.array([0.4749176554355453, 0.41918481366710747])
  p = metrics.p_mtl(va, 0.33507035885799447, 0.4943377041019861)
  assert p == pytest.approx(1.276459297511, abs=1e-12)


def test_the_floor_on_the_validation_split_of_s_aff_wild2_is_the_known_one():
  expression = metrics.Confusion(np.diag(EXPRESSION_TARGETS)).floor()
  units = au_counts().floor()
  assert expression["f1"] == pytest.approx(0.0574, abs=5e-5)
  assert expression["accuracy"] == 4601 / 15440
  assert units["f1"] == pytest.approx(0.3587, abs=5e-5)
  floor = metrics.p_mtl(metrics.CCC.empty().floor(), expression["f1"], units["f1"])
  assert floor == pytest.approx(0.4161, abs=5e-5)


def test_floors_are_what_the_best_constants_score():
  rng = np.random.default_rng(0)
  target = rng.choice(4, 500, p=[0.1, 0.5, 0.3, 0.1])
  floor = metrics.Confusion.from_classes(0 * target, target, num_classes=4).floor()
  constants = [metrics.f1(0 * target + c, target, num_classes=4).mean() for c in range(4)]
  np.testing.assert_allclose(floor["f1"], max(constants), rtol=1e-6)

  units = rng.uniform(size=(500, 3)) < [0.1, 0.5, 0]
  floor = metrics.BinaryCounts.from_model_output(rng.uniform(-1, 1, (500, 3)), units).floor()
  np.testing.assert_allclose(floor["f1_per_unit"], metrics.f1(np.ones((500, 3)), units))

  soft = rng.dirichlet(np.ones(4), 500)
  constant = np.tile(np.log(soft.mean(0)), (500, 1))
  best = metrics.CrossEntropy.from_model_output(constant, soft)
  np.testing.assert_allclose(best.compute(), best.floor(), rtol=1e-5)
  other = metrics.CrossEntropy.from_model_output(rng.standard_normal((500, 4)), soft)
  np.testing.assert_allclose(other.floor(), best.floor(), rtol=1e-6)
  assert other.compute() > other.floor()


def test_a_class_that_never_occurs_counts_as_zero_in_macro_f1():
  target = np.array([0, 1, 2, 0])
  assert metrics.f1(target, target, num_classes=3).tolist() == [1, 1, 1]
  assert metrics.f1(target, target, num_classes=6).tolist() == [1, 1, 1, 0, 0, 0]
  off = np.zeros((4, 2))
  on = np.stack([np.ones(4), np.zeros(4)], axis=1)
  assert metrics.f1(on, on).tolist() == [1, 0]
  assert (metrics.f1(off, off) == 0).all()


def test_confusion_counts_every_labelled_row_once():
  rng = np.random.default_rng(0)
  logits, target = rng.standard_normal((300, 5)), rng.dirichlet(np.ones(5), 300)
  mask = rng.uniform(size=300) < 0.5
  expected = np.zeros((5, 5), int)
  np.add.at(expected, (target[mask].argmax(1), logits[mask].argmax(1)), 1)
  merged = in_batches(metrics.Confusion, (logits, target, mask), [100, 200])
  assert (merged.counts == expected).all()
  assert merged.counts.dtype == np.int64


def test_expression_can_be_scored_over_some_of_the_classes():
  logits = np.array([[0, 1, 9], [5, 1, 9], [0, 1, 9], [3, 1, 2]])
  target = np.eye(3)[[1, 0, 2, 1]]
  counts = metrics.Confusion.from_model_output(logits, target, classes=(1, 0)).counts
  # The third row is of a class left out; the best of the two others is taken elsewhere.
  assert counts.tolist() == [[1, 1], [0, 1]]


def test_a_unit_is_on_from_a_probability_of_one_half():
  logits = np.array([[0.1], [0.0], [-0.1]], np.float32)
  counts = metrics.BinaryCounts.from_model_output(logits, np.ones((3, 1)))
  assert (counts.true_positive, counts.false_negative) == (2, 1)
  probabilities = np.array([[0.6], [0.5], [0.49]])
  np.testing.assert_allclose(metrics.f1(probabilities, np.ones((3, 1))), [4 / 5])


def test_the_first_of_equal_classes_is_taken():
  counts = metrics.Confusion.from_model_output(np.zeros((1, 3)), np.array([[0.5, 0.5, 0]])).counts
  assert counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_more_rows_than_can_be_counted_exactly_are_refused():
  rows = jax.ShapeDtypeStruct((2**24,), np.int32)
  with pytest.raises(ValueError, match="16777216 rows"):
    jax.eval_shape(functools.partial(metrics.f1, num_classes=2), rows, rows)


def test_cross_entropy_is_the_textbook_formula():
  rng = np.random.default_rng(0)
  logits, target = rng.standard_normal((300, 5)), rng.dirichlet(np.ones(5), 300)
  expected = -(target * special.log_softmax(logits, axis=1)).sum(1).mean()
  merged = in_batches(metrics.CrossEntropy, (logits, target), [100, 200])
  np.testing.assert_allclose(merged.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize(
  "metric", [metrics.CCC, metrics.Confusion, metrics.BinaryCounts, metrics.CrossEntropy]
)
def test_padding_rows_and_empty_metrics_change_nothing(metric):
  rng = np.random.default_rng(0)
  rows = metric in (metrics.Confusion, metrics.CrossEntropy)
  prediction, target = rng.standard_normal((20, 4)), rng.uniform(size=(20, 4))
  mask = rng.uniform(size=(20,) if rows else (20, 4)) < 0.8
  padding = [np.full_like(prediction, np.nan), np.full_like(target, np.nan), np.zeros_like(mask)]
  alone = metrics.to_host(metric.from_model_output(prediction, target, mask))
  padded = [np.concatenate(pair) for pair in zip((prediction, target, mask), padding, strict=True)]
  with_padding = metrics.to_host(metric.from_model_output(*padded))
  only_padding = metrics.to_host(metric.from_model_output(*padding))
  for same in (with_padding, alone.merge(only_padding), metric.empty().merge(alone)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, same)
  jax.tree.map(np.testing.assert_array_equal, metric.empty().compute(), metric.empty().compute())


@pytest.mark.parametrize(
  "metric", [metrics.CCC, metrics.Confusion, metrics.BinaryCounts, metrics.CrossEntropy]
)
def test_merging_on_the_device_and_on_the_host_agree(metric):
  rng = np.random.default_rng(0)
  a, b = (
    metric.from_model_output(rng.standard_normal((20, 4)), rng.uniform(size=(20, 4)))
    for _ in range(2)
  )
  on_device = jax.jit(lambda a, b: a.merge(b).compute())(a, b)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(on_device))
  on_host = metrics.to_host(a).merge(metrics.to_host(b)).compute()
  assert all(x.dtype == np.float64 for x in jax.tree.leaves(on_host))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), on_device, on_host)


def test_scores_are_jittable_functions_of_arrays():
  classes, units = jnp.array([0, 1, 1]), jnp.array([[1, 0], [1, 1]])
  f1 = jax.jit(metrics.f1, static_argnames="num_classes")
  assert (f1(classes, classes, num_classes=2) == 1).all()
  assert (f1(units, units) == 1).all()
  assert jax.jit(metrics.p_mtl)(jnp.ones(2), 1.0, jnp.ones(12)) == 3


def test_the_mixed_scores_of_the_first_two_editions():
  assert metrics.expression_abaw2(0.5, 0.8) == pytest.approx(0.67 * 0.5 + 0.33 * 0.8)
  assert metrics.au_abaw2(0.5, 0.8) == pytest.approx(0.65)
