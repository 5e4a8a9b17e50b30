"""Post-processing against loops over every frame, against all thresholds, and against fractions."""

import itertools
import statistics
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from affjax import postprocess

WINDOWS = [
  (kind, width, causal, max_gap)
  for kind, width in (("mean", 5), ("median", 7), ("gaussian", 1.7), ("mean", 1), ("median", 401))
  for causal in (False, True)
  for max_gap in (None, 3, 9)
] + [("mean", 4, True, None), ("median", 6, True, 2), ("gaussian", 300.0, False, 3)]


def naive(values, frames, present, kind, width, causal, max_gap):
  """One frame at a time, as the docstring has it, one value after the other."""
  there = sorted({int(f) for f, p in zip(frames, present, strict=True) if p})
  run = {there[0]: 0} if there else {}
  for a, b in itertools.pairwise(there):
    run[b] = run[a] + (max_gap is not None and b - a > max_gap)
  at = {
    f: [np.mean([v[k] for v, g, p in zip(values, frames, present, strict=True) if p and g == f])
        for k in range(values.shape[1])]
    for f in there
  }  # fmt: skip
  out = np.full(values.shape, np.nan)
  for i, f in enumerate(frames.tolist()):
    if causal:
      side = [run[g] for g in there if g <= f][-1:]
    else:
      side = [run[min(there, key=lambda g: (abs(g - f), g))]] if there else []
    near = [g for g in there if [run[g]] == side and not (causal and g > f)]
    back = 4 * width if kind == "gaussian" else width - 1 if causal else (width - 1) / 2
    near = [g for g in near if abs(g - f) <= int(back + 0.5)]
    for k in range(values.shape[1]) if near else ():
      if kind == "gaussian":
        weight = [np.exp(-((g - f) ** 2) / (2 * width**2)) for g in near]
        out[i, k] = sum(w * at[g][k] for w, g in zip(weight, near, strict=True)) / sum(weight)
      else:
        out[i, k] = getattr(statistics, "fmean" if kind == "mean" else kind)(at[g][k] for g in near)
  return out


def clip(seed, rows=60, size=3, last=90):
  """Frames in any order, some twice, with jumps, some absent: values, frames, present."""
  rng = np.random.default_rng(seed)
  frames = rng.integers(1, last, rows)
  frames[frames > last // 2] += 40
  return rng.normal(size=(rows, size)), frames, rng.random(rows) < 0.6


def window(kind, width, causal=False, max_gap=None):
  return {"kind": kind, "width": width, "causal": causal, "max_gap": max_gap}


# Smoothing.


@pytest.mark.parametrize(("kind", "width", "causal", "max_gap"), WINDOWS)
def test_smoothing_is_the_loop_over_frame_numbers(kind, width, causal, max_gap):
  for seed in range(4):
    values, frames, present = clip(seed)
    found = postprocess.smooth(values, frames, present, **window(kind, width, causal, max_gap))
    expected = naive(values, frames, present, kind, width, causal, max_gap)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(
  frames=st.lists(st.integers(-5, 40), min_size=1, max_size=12),
  absent=st.integers(0, 2**12 - 1),
  kind=st.sampled_from(postprocess.KINDS),
  width=st.sampled_from([1, 3, 5, 15]),
  causal=st.booleans(),
  max_gap=st.sampled_from([None, 1, 2, 5]),
)
@settings(max_examples=150, deadline=None)
def test_smoothing_is_the_loop_over_any_few_frames(frames, absent, kind, width, causal, max_gap):
  frames = np.array(frames)
  present = (absent >> np.arange(len(frames))) % 2 == 0
  values = np.random.default_rng(absent).normal(size=(len(frames), 1))
  found = postprocess.smooth(values, frames, present, **window(kind, width, causal, max_gap))
  expected = naive(values, frames, present, kind, width, causal, max_gap)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_inside_a_video_without_gaps_smoothing_is_that_of_scipy():
  values = np.random.default_rng(0).normal(size=(200, 2))
  frames, present = np.arange(1, 201), np.ones(200, bool)
  inner = slice(40, -40)  # scipy makes up what is beyond the ends
  for kind, width, expected in (
    ("mean", 9, ndimage.uniform_filter1d(values, 9, axis=0)),
    ("median", 9, ndimage.median_filter(values, (9, 1))),
    ("gaussian", 7.5, ndimage.gaussian_filter1d(values, 7.5, axis=0)),
  ):
    found = postprocess.smooth(values, frames, present, kind=kind, width=width)
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "width", "causal", "max_gap"), WINDOWS)
def test_what_absent_rows_hold_changes_nothing(kind, width, causal, max_gap):
  values, frames, present = clip(0)
  settings = window(kind, width, causal, max_gap)
  found = postprocess.smooth(values, frames, present, **settings)
  for other in (np.nan, np.inf, 1e300):
    spoilt = np.where(present[:, None], values, other)
    again = postprocess.smooth(spoilt, frames, present, **settings)
    np.testing.assert_array_equal(again, found)


@pytest.mark.parametrize(("kind", "width", "causal", "max_gap"), WINDOWS)
def test_the_order_of_the_rows_changes_nothing(kind, width, causal, max_gap):
  values, frames, present = clip(1)
  settings = window(kind, width, causal, max_gap)
  found = postprocess.smooth(values, frames, present, **settings)
  order = np.random.default_rng(0).permutation(len(values))
  again = postprocess.smooth(values[order], frames[order], present[order], **settings)
  np.testing.assert_allclose(again, found[order], rtol=0, atol=1e-12)


def test_rows_that_are_there_twice_count_once():
  values, frames = np.array([[0.0], [1.0], [1.0], [1.0]]), np.array([1, 2, 2, 2])
  found = postprocess.smooth(values, frames, np.ones(4, bool), kind="mean", width=3)
  np.testing.assert_array_equal(found, np.full((4, 1), 0.5))


@pytest.mark.parametrize("kind", postprocess.KINDS)
@pytest.mark.parametrize("max_gap", [None, 5])
def test_causal_smoothing_uses_no_later_frame(kind, max_gap):
  values, frames, present = clip(2, rows=200, last=300)
  settings = window(kind, 12, True, max_gap)
  found = postprocess.smooth(values, frames, present, **settings)
  for now in (20, 100, 150, 151, 250):
    past = frames <= now
    changed = np.where(past[:, None], values, values + 100)
    again = postprocess.smooth(changed, frames, present, **settings)
    np.testing.assert_array_equal(again[past], found[past])
    alone = postprocess.smooth(values[past], frames[past], present[past], **settings)
    np.testing.assert_allclose(alone, found[past], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", postprocess.KINDS)
def test_nothing_passes_a_jump_larger_than_the_gap_allowed(kind):
  frames = np.array([1, 2, 12, 13, 14])
  values, present = np.array([[0.0]] * 2 + [[1.0]] * 3), np.ones(5, bool)
  smoothed = lambda gap: postprocess.smooth(
    values, frames, present, kind=kind, width=41, max_gap=gap
  )
  np.testing.assert_allclose(smoothed(9), values, rtol=0, atol=1e-12)
  assert (np.abs(smoothed(10) - values) > 1e-3).any()


def test_absent_frames_in_a_gap_belong_to_the_nearer_side_and_causal_to_the_one_before():
  frames = np.arange(1, 12)
  present = (frames <= 1) | (frames >= 11)
  values = np.where(frames <= 1, 0.0, 1.0)[:, None]
  wide = dict(kind="mean", width=41, max_gap=5)
  found = postprocess.smooth(values, frames, present, **wide)
  np.testing.assert_array_equal(found[:, 0], [0] * 6 + [1] * 5)  # frame 6 is as near to both
  found = postprocess.smooth(values, frames, present, **wide, causal=True)
  np.testing.assert_array_equal(found[:, 0], [0] * 10 + [1])


def test_what_no_frame_reaches_is_nan():
  frames = np.array([1, 2, 3, 4, 50, 60])
  present = np.array([False, True, False, False, False, True])
  values = np.ones((6, 1))
  there = lambda **w: ~np.isnan(postprocess.smooth(values, frames, present, **w)[:, 0])
  assert there(kind="mean", width=3).tolist() == [True, True, True, False, False, True]
  assert there(kind="median", width=3, causal=True).tolist() == [False, *[True] * 3, False, True]
  assert not there(kind="gaussian", width=1, causal=True)[[0, 4]].any()
  nobody = postprocess.smooth(values, frames, np.zeros(6, bool), kind="mean", width=3)
  assert np.isnan(nobody).all()


@pytest.mark.parametrize("kind", postprocess.KINDS)
def test_videos_are_smoothed_one_by_one(kind):
  values, frames, present = clip(3, rows=120)
  videos = np.random.default_rng(0).choice([b"a", b"b_left", b"b_right"], 120)
  settings = window(kind, 9, False, 4)
  found = postprocess.smooth(values, frames, present, **settings, groups=videos)
  for video in np.unique(videos):
    own = videos == video
    alone = postprocess.smooth(values[own], frames[own], present[own], **settings)
    np.testing.assert_array_equal(found[own], alone)
  empty = postprocess.smooth(values[:0], frames[:0], present[:0], **settings, groups=videos[:0])
  assert empty.shape == (0, 3)


def test_frames_far_apart_need_little_room():
  frames = np.array([0, 1, 10**12, 10**12 + 1])
  values = np.array([[0.0], [1.0], [4.0], [5.0]])
  for kind in postprocess.KINDS:
    found = postprocess.smooth(values, frames, np.ones(4, bool), kind=kind, width=101)
    np.testing.assert_allclose(found[:, 0], [0.5, 0.5, 4.5, 4.5], atol=1e-2)


@pytest.mark.parametrize(
  ("changed", "says"),
  [
    ({"kind": "box"}, "mean, median, gaussian"),
    ({"width": 4}, "odd"),
    ({"width": 2.5, "causal": True}, "whole"),
    ({"width": 0}, "100,000"),
    ({"width": 1e9}, "100,000"),
    ({"width": float("nan")}, "100,000"),
    ({"width": "5"}, "100,000"),
    ({"causal": 1}, "true or false"),
    ({"max_gap": 0}, "from 1 on"),
    ({"max_gap": 1.5}, "from 1 on"),
  ],
)
def test_a_window_that_is_none_is_refused_in_one_line(changed, says):
  values, frames, present = clip(0)
  with pytest.raises(ValueError, match=says) as error:
    postprocess.smooth(values, frames, present, **(window("mean", 5) | changed))
  assert "\n" not in str(error.value)


def test_present_rows_that_are_not_finite_are_refused():
  values = np.array([[0.0], [np.nan]])
  with pytest.raises(ValueError, match="not finite"):
    postprocess.smooth(values, np.arange(2), np.ones(2, bool), kind="mean", width=3)


# Thresholds.


def unit_f1(on, target):
  """The F1 as a fraction; 0 where there is nothing."""
  hits, total = int((on & target).sum()), int(on.sum() + target.sum())
  return Fraction(2 * hits, total) if total else Fraction(0)


# Few distinct values, so that rows are equal; and neighbours among the floats.
PROBABILITIES = st.one_of(
  st.sampled_from([0.0, 0.1, 0.3, np.nextafter(0.3, 1), 0.5, np.nextafter(0.5, 0), 0.7, 1.0]),
  st.floats(0, 1),
)


@given(st.lists(st.tuples(PROBABILITIES, st.booleans(), st.booleans()), max_size=20))
@settings(max_examples=300, deadline=None)
def test_no_threshold_has_a_larger_f1(rows):
  probability, target, mask = (np.array(x)[:, None] for x in zip(*rows, strict=True)) if rows else [
    np.zeros((0, 1), kind) for kind in (float, bool, bool)
  ]  # fmt: skip
  [found] = postprocess.thresholds(probability, target, mask)
  p, y = probability[mask], target[mask]
  of = lambda threshold: unit_f1(p >= threshold, y)
  best = max(map(of, [*p.tolist(), 0.5, 2.0]))
  assert of(found) == best
  assert 0 <= found <= 1
  if of(0.5) == best:
    assert found == 0.5


def test_a_threshold_lies_midway_and_of_equals_the_nearest_to_a_half_is_taken():
  target = np.array([[1], [1], [0], [0]])
  of = lambda *p: postprocess.thresholds(np.array(p)[:, None], target)[0]
  assert of(0.4, 0.3, 0.2, 0.1) == 0.25
  assert of(0.9, 0.8, 0.2, 0.1) == 0.5
  # On down to 0.9, and on down to 0.6: both have an F1 of 2 / 3; down to 0.8 it is 0.8.
  assert of(0.9, 0.6, 0.8, 0.7) == pytest.approx(0.5)
  target = np.array([[1], [0], [1], [0], [0]])
  both = np.array([[0.9], [0.8], [0.7], [0.6], [0.55]])  # F1: 2/3, 1/2, 4/5, 2/3, 4/7
  assert postprocess.thresholds(both, target)[0] == pytest.approx(0.65)


def test_units_have_thresholds_and_masks_of_their_own():
  rng = np.random.default_rng(0)
  probability, target = rng.random((300, 3)), rng.random((300, 3)) < 0.3
  mask = rng.random((300, 3)) < 0.7
  mask[:, 2] = False
  found = postprocess.thresholds(probability, target, mask)
  assert found[2] == 0.5  # nothing is known of it
  for k in range(2):
    kept = mask[:, k]
    y, p = target[kept, k], probability[kept, k]
    expected = max(sklearn.metrics.f1_score(y, p >= t) for t in [*p, 0.5])
    assert sklearn.metrics.f1_score(y, p >= found[k]) == expected


def test_thresholds_of_logits_are_refused():
  with pytest.raises(ValueError, match="sigmoid"):
    postprocess.thresholds(np.array([[-1.5], [0.5]]), np.array([[0], [1]]))


# Class biases.


def macro_f1(predicted, target, classes):
  return sum(unit_f1(predicted == k, target == k) for k in range(classes)) / classes


@given(
  # Whole numbers make rows equal, floats do not.
  scores=st.one_of(
    hnp.arrays(np.float64, st.tuples(st.integers(0, 25), st.integers(2, 4)),
               elements=st.integers(-3, 3)),
    hnp.arrays(np.float64, st.tuples(st.integers(0, 25), st.integers(2, 4)),
               elements=st.floats(-50, 50)),
  ),
  seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_class_biases_never_lower_the_score_that_they_were_fitted_to(scores, seed):
  rng = np.random.default_rng(seed)
  rows, classes = scores.shape
  target = rng.integers(0, classes, rows)
  mask = rng.random(rows) < 0.8
  bias = postprocess.class_bias(scores, np.eye(classes)[target], mask)
  f1 = lambda bias: macro_f1((scores + bias).argmax(1)[mask], target[mask], classes)
  assert f1(bias) >= f1(0)
  assert (bias[~np.isin(np.arange(classes), target[mask])] == 0).all()
  if f1(bias) == f1(0):
    assert (bias == 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_no_bias_of_a_single_class_gains_any_more(seed):
  rng = np.random.default_rng(seed)
  target = rng.choice(4, 80, p=[0.6, 0.2, 0.15, 0.05])
  scores = rng.normal(size=(80, 4)) + 1.2 * np.eye(4)[target]
  bias = postprocess.class_bias(scores, np.eye(4)[target])
  best = macro_f1((scores + bias).argmax(1), target, 4)
  assert best > macro_f1(scores.argmax(1), target, 4)
  moved = scores + bias
  for k in range(4):
    edges = np.sort(np.delete(moved, k, 1).max(1) - moved[:, k])
    for shift in [edges[0] - 1, *(edges[:-1] + edges[1:]) / 2, edges[-1] + 1]:
      trial = (moved + shift * np.eye(4)[k]).argmax(1)
      assert macro_f1(trial, target, 4) <= best


def test_two_classes_get_the_best_of_all_biases():
  rng = np.random.default_rng(0)
  target = (rng.random(60) < 0.2).astype(int)
  scores = rng.normal(size=(60, 2)) + np.eye(2)[target] - [1, 0]
  bias = postprocess.class_bias(scores, np.eye(2)[target])
  # Only the difference counts, so a line of it is all that there is.
  edges = np.sort(scores[:, 0] - scores[:, 1])
  every = [edges[0] - 1, *(edges[:-1] + edges[1:]) / 2, edges[-1] + 1]
  best = max(macro_f1((scores + [0, e]).argmax(1), target, 2) for e in every)
  assert macro_f1((scores + bias).argmax(1), target, 2) == best
  expected = sklearn.metrics.f1_score(target, (scores + bias).argmax(1), average="macro")
  assert float(best) == pytest.approx(expected, abs=1e-12)


def test_rows_with_scores_that_are_not_finite_are_refused_where_they_are_labelled():
  scores, target = np.array([[0.0, np.nan], [0.0, 1.0]]), np.eye(2)
  assert postprocess.class_bias(scores, target, np.array([0, 1])).tolist() == [0, 0]
  with pytest.raises(ValueError, match="not finite"):
    postprocess.class_bias(scores, target)


# Blends.


@pytest.mark.parametrize("seed", range(4))
def test_a_blend_scores_no_less_than_equal_weights_or_any_member(seed):
  rng = np.random.default_rng(seed)
  truth = rng.normal(size=(200, 1))
  members = [truth + s * rng.normal(size=(200, 1)) for s in rng.uniform(0.3, 3, 4)]
  score = lambda x: -float(((x - truth) ** 2).mean())
  weights = postprocess.blend(members, score)
  assert weights.sum() == pytest.approx(1)
  assert (weights >= 0).all()
  found = score(postprocess.mix(members, weights))
  for other in (*np.eye(4), np.full(4, 0.25)):
    assert found >= score(postprocess.mix(members, other))


def test_a_blend_of_two_is_the_best_in_twentieths():
  rng = np.random.default_rng(0)
  truth = rng.normal(size=(500, 2))
  members = [truth + s * rng.normal(size=(500, 2)) for s in (1.0, 1.5)]
  score = lambda x: -float(((x - truth) ** 2).mean())
  grid = [score(w * members[0] + (1 - w) * members[1]) for w in np.linspace(0, 1, 21)]
  weights = postprocess.blend(members, score)
  assert score(postprocess.mix(members, weights)) == pytest.approx(max(grid), abs=1e-9)
  assert weights[0] == pytest.approx(np.argmax(grid) / 20)


def test_equal_weights_stay_where_nothing_is_better():
  members = [np.ones((5, 1)), np.ones((5, 1)), np.ones((5, 1))]
  np.testing.assert_array_equal(postprocess.blend(members, lambda x: 0.0), np.full(3, 1 / 3))
  assert postprocess.blend(members[:1], lambda x: 0.0).tolist() == [1]


def test_a_member_alone_is_among_the_candidates():
  # Any share of the second, and equal weights too, scores 0: only the ends can be told apart.
  members = [np.zeros((1, 1)), np.ones((1, 1))]
  weights = postprocess.blend(members, lambda x: float(x[0, 0] == 1))
  assert weights.tolist() == [0, 1]


# Cross-fit.


def test_a_cross_fit_sees_other_groups_alone_and_answers_for_every_row():
  rng = np.random.default_rng(0)
  groups = rng.choice([b"a", b"b", b"c", b"d", b"e", b"f", b"g"], 100)
  fitted = []

  def fit(rows):
    fitted.append(rows)
    return set(groups[rows].tolist())

  def apply(seen, rows):
    assert not seen & set(groups[rows].tolist())
    return np.stack([np.flatnonzero(rows), np.full(rows.sum(), len(seen))], 1)

  found = postprocess.cross_fit(groups, 3, fit, apply)
  np.testing.assert_array_equal(found[:, 0], np.arange(100))
  assert set(found[:, 1]) == {4, 5}  # of seven groups in folds of two and three
  assert len(fitted) == 3


def test_the_deal_of_a_cross_fit_is_even_and_its_seeds():
  groups = np.repeat(np.arange(40), 3)

  def fold(seed):
    count = itertools.count()
    apply = lambda k, rows: np.full(rows.sum(), k)
    return postprocess.cross_fit(groups, 4, lambda rows: next(count), apply, seed)

  assert np.bincount(fold(0)).tolist() == [30] * 4
  np.testing.assert_array_equal(fold(0), np.repeat(fold(0)[::3], 3))
  np.testing.assert_array_equal(fold(0), fold(0))
  assert (fold(0) != fold(1)).any()


@pytest.mark.parametrize(("folds", "groups"), [(1, 5), (6, 5), (2, 1)])
def test_more_folds_than_groups_are_refused(folds, groups):
  with pytest.raises(ValueError, match=f"{folds} folds of {groups} groups"):
    postprocess.cross_fit(np.arange(groups), folds, None, None)


SEEDS = 40


def noise(seed):
  """Labels that have nothing to do with the outputs, 400 rows of 20 videos."""
  rng = np.random.default_rng(seed)
  return rng, np.repeat(np.arange(20), 20)


def biased(seed):
  """(raw, in-sample, cross-fitted) macro F1 of scores that are noise, five classes alike."""
  rng, groups = noise(seed)
  scores, target = rng.normal(size=(400, 5)), rng.integers(0, 5, 400)
  one_hot = np.eye(5)[target]
  f1 = lambda s: float(macro_f1(s.argmax(1), target, 5))
  fit = lambda rows: postprocess.class_bias(scores, one_hot, rows)
  unseen = postprocess.cross_fit(groups, 5, fit, lambda bias, rows: scores[rows] + bias)
  return f1(scores), f1(scores + fit(np.ones(400, bool))), f1(unseen)


def thresholded(seed):
  """The same of a unit that is always on at a half: the best there is for noise."""
  rng, groups = noise(seed)
  probability, target = rng.uniform(0.5, 1, (400, 1)), rng.random((400, 1)) < 0.5
  f1 = lambda margin: float(unit_f1(margin >= 0, target))
  fit = lambda rows: postprocess.thresholds(probability, target, rows[:, None])
  apply = lambda threshold, rows: probability[rows] - threshold
  unseen = postprocess.cross_fit(groups, 5, fit, apply)
  return f1(probability - 0.5), f1(probability - fit(np.ones(400, bool))), f1(unseen)


@pytest.mark.parametrize("scores", [biased, thresholded])
def test_on_noise_only_the_fitted_rows_seem_to_gain(scores):
  raw, inside, unseen = np.array([scores(seed) for seed in range(SEEDS)]).T
  error = lambda x: x.std(ddof=1) / np.sqrt(SEEDS)
  assert (inside >= raw).all()
  assert (inside - raw).mean() > 3 * error(inside - raw)
  assert (unseen - raw).mean() < 3 * error(unseen - raw)
