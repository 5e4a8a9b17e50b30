"""What is done to a model's outputs after it ran: blends, smoothing over time, biases, thresholds.

`smooth` goes by frame numbers; `thresholds`, `class_bias` and `blend` are fitted to labels and
never score less than the default on the rows that they were fitted to. What they gain there is no
honest score: `cross_fit` fits on some videos and applies to others. All of it is deterministic.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

KINDS = ("mean", "median", "gaussian")
WIDEST = 100_000  # frames; more than five digits can number
_LARGEST = 1e12  # of the numbers in settings
_TRUNCATE = 4  # standard deviations, of a Gaussian
_GAIN = 1e-9  # of a score: what is less may be rounding
_WEIGHTS = np.linspace(0, 1, 21)  # of a member of a blend
_WINDOWS = 2**22  # values of medians that are sorted at a time


def smooth(
  values: np.ndarray,
  frames: np.ndarray,
  present: np.ndarray,
  *,
  kind: str,
  width: float,
  causal: bool = False,
  max_gap: int | None = None,
  groups: np.ndarray | None = None,
) -> np.ndarray:
  """Smooths over time: distances are in frame numbers, whatever the order of the rows.

  Each frame number gets the mean, median or Gaussian mean of the frames that are present around
  it, itself included, and so do frames that are absent. Rows of one frame count once, as their
  mean, and get the same values.

  Args:
    values: [rows, size]; what absent rows hold is not looked at.
    frames: [rows] integers.
    present: [rows] bool; False: there was no face, say.
    kind: one of `KINDS`.
    width: of "mean" and "median" the number of frames of the window, an odd one unless causal; of
      "gaussian" the standard deviation in frames, cut off at four of them.
    causal: the window ends with the frame itself: nothing later is used.
    max_gap: where the numbers of present frames jump by more, nothing is used across the jump;
      absent frames inside of it belong to the nearer side (causal: to the one before). None: only
      the width counts.
    groups: [rows] video of each row, each smoothed on its own; None: all rows are of one.

  Returns:
    [rows, size] float64; NaN where no present frame is within reach.

  Raises:
    ValueError: no such window, or values of present rows that are not finite.
  """
  check_window({"kind": kind, "width": width, "causal": causal, "max_gap": max_gap})
  values, present = np.asarray(values, np.float64), np.asarray(present, bool)
  if not np.isfinite(values[present]).all():
    raise ValueError("smoothing: values of present rows are not finite; mark such rows as absent")
  frames = np.asarray(frames, np.int64)
  out = np.full(values.shape, np.nan)
  one = functools.partial(_smooth_video, kind=kind, width=width, causal=causal, max_gap=max_gap)
  for rows in _rows_of_groups(groups, len(values)):
    out[rows] = one(values[rows], frames[rows], present[rows])
  return out


def check_window(window: Mapping[str, Any]) -> None:
  """Raises ValueError, saying what is allowed, unless these are settings of `smooth`."""
  required, allowed = {"kind", "width"}, {"kind", "width", "causal", "max_gap"}
  if not isinstance(window, Mapping) or not required <= set(window) <= allowed:
    raise ValueError(f"smooth={window!r}: it should hold kind, width and perhaps causal, max_gap")
  kind, width = window["kind"], window["width"]
  causal, max_gap = window.get("causal", False), window.get("max_gap")
  if kind not in KINDS:
    raise ValueError(f"smooth kind={kind!r}: use one of {', '.join(KINDS)}")
  if not isinstance(causal, bool):
    raise ValueError(f"smooth causal={causal!r}: use true or false")
  if not is_number(width) or not 0 < width <= WIDEST:
    raise ValueError(f"smooth width={width!r}: use a number of frames of at most {WIDEST:,}")
  if kind != "gaussian" and (width != int(width) or not (causal or width % 2)):
    allowed = "a whole number" if causal else "an odd number"
    raise ValueError(f"smooth width={width!r}: the window of a {kind} has {allowed} of frames")
  if max_gap is not None and not (is_number(max_gap) and max_gap >= 1 and max_gap == int(max_gap)):
    raise ValueError(f"smooth max_gap={max_gap!r}: use a number of frames from 1 on, or none")


def is_number(value: Any) -> bool:
  """Whether it is a number, finite and not absurd."""
  return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _rows_of_groups(groups: np.ndarray | None, count: int) -> list[np.ndarray]:
  """The rows of each group, in their order."""
  if groups is None or not count:
    return [np.arange(count)]
  of_row = np.unique(groups, return_inverse=True)[1]
  order = np.argsort(of_row, kind="stable")
  return np.split(order, np.flatnonzero(np.diff(of_row[order])) + 1)


def _smooth_video(
  values: np.ndarray,
  frames: np.ndarray,
  present: np.ndarray,
  kind: str,
  width: float,
  causal: bool,
  max_gap: int | None,
) -> np.ndarray:
  if not present.any():  # nor perhaps any row
    return np.full(values.shape, np.nan)
  rows = np.flatnonzero(present)
  rows = rows[np.argsort(frames[rows], kind="stable")]
  known, first, times = np.unique(frames[rows], return_index=True, return_counts=True)
  values = np.add.reduceat(values[rows], first, axis=0) / times[:, None]
  wanted, of_row = np.unique(frames, return_inverse=True)
  reach = int(_TRUNCATE * width + 0.5) if kind == "gaussian" else int(width) - 1
  if kind != "gaussian" and not causal:
    reach //= 2
  reach = min(reach, int(wanted[-1] - wanted[0]))
  places = _places(wanted, known, reach, causal, max_gap)
  sources = places[np.searchsorted(wanted, known)]
  if kind == "gaussian":
    return _gaussian(values, sources, places, width, reach, causal)[of_row]
  start = np.searchsorted(sources, places - reach)
  end = np.searchsorted(sources, places if causal else places + reach, side="right")
  return (_mean if kind == "mean" else _median)(values, start, end)[of_row]


def _places(
  wanted: np.ndarray, known: np.ndarray, reach: int, causal: bool, max_gap: int | None
) -> np.ndarray:
  """Frame numbers [wanted] -> places from 0 on: the same distances, but none beyond reach + 1.

  So a few frames, far apart, need little room, and what a jump parts is out of reach.
  """
  steps = np.minimum(np.diff(wanted), reach + 1)
  if max_gap is not None:
    run = np.cumsum(np.diff(known, prepend=known[0]) > max_gap)
    # From which frame on the next present one is the nearer.
    borders = known[1:] if causal else (known[:-1] + known[1:]) // 2 + 1
    side = run[np.searchsorted(borders, wanted, side="right")]
    steps = np.where(np.diff(side) > 0, reach + 1, steps)
  return np.concatenate([[0], np.cumsum(steps)])


def _mean(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """Means of values[start:end], NaN where there are none."""
  sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])
  count = (end - start)[:, None]
  return np.where(count > 0, (sums[end] - sums[start]) / np.maximum(count, 1), np.nan)


def _median(values: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """Medians of values[start:end], NaN where there are none."""
  out = np.full((len(start), values.shape[1]), np.nan)
  widest = max(int((end - start).max()), 1)
  some = np.flatnonzero(end > start)
  parts = -(-len(some) * widest * values.shape[1] // _WINDOWS)
  for rows in np.array_split(some, parts):
    at = start[rows, None] + np.arange(widest)
    inside = values.T[:, np.minimum(at, len(values) - 1)]
    # [size, rows, widest]: what is beyond the window comes last.
    inside = np.sort(np.where(at < end[rows, None], inside, np.inf), axis=-1)
    count = (end - start)[rows]
    middle = np.stack([(count - 1) // 2, count // 2], axis=-1)
    both = np.take_along_axis(inside, np.broadcast_to(middle, (len(inside), *middle.shape)), -1)
    out[rows] = both.mean(-1).T
  return out


def _gaussian(
  values: np.ndarray,
  sources: np.ndarray,
  places: np.ndarray,
  deviation: float,
  reach: int,
  causal: bool,
) -> np.ndarray:
  """Weighted means at `places` of values that stand at `sources`, NaN where none is in reach."""
  grid = np.zeros((places[-1] + 1, values.shape[1] + 1))
  grid[sources, :-1] = values
  grid[sources, -1] = 1  # sums to the weights
  distance = np.arange(-reach, reach + 1)
  kernel = np.exp(-0.5 * (distance / deviation) ** 2)
  if causal:
    kernel[distance > 0] = 0
  sums = ndimage.correlate1d(grid, kernel, axis=0, mode="constant")[places]
  weight = sums[:, -1:]
  return np.where(weight > 0, sums[:, :-1] / np.where(weight > 0, weight, 1), np.nan)


def thresholds(
  probability: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
  """The threshold of each unit, on from there, with the largest F1 on these rows.

  Every set of rows that a threshold can turn on is tried; the threshold lies midway between the
  values that it parts. 0.5 stays where none is better, as for units without a positive; of equals
  the one nearest to 0.5 is taken.

  Args:
    probability: [rows, units] in [0, 1].
    target: [rows, units] in {0, 1}.
    mask: [rows, units] 1 = labelled; None = all.

  Returns:
    [units] float64 in [0, 1].

  Raises:
    ValueError: labelled rows have values that are no probabilities.
  """
  probability, on = np.asarray(probability, np.float64), np.asarray(target) > 0
  kept = np.ones(on.shape, bool) if mask is None else np.asarray(mask) > 0
  if not ((probability[kept] >= 0) & (probability[kept] <= 1)).all():
    raise ValueError("thresholds: probabilities should be in [0, 1]; of logits take the sigmoid")
  columns = zip(probability.T, on.T, kept.T, strict=True)
  return np.array([_threshold(p[k], y[k]) for p, y, k in columns])


def _threshold(probability: np.ndarray, on: np.ndarray) -> float:
  order = np.argsort(-probability, kind="stable")
  values, hits, positives = probability[order], np.cumsum(on[order]), on.sum()
  last = np.flatnonzero(np.diff(values, append=-1))  # rows of equal value turn on together
  f1 = 2 * hits[last] / (positives + last + 1)
  half = probability >= 0.5
  default = 2 * (half & on).sum() / max(positives + half.sum(), 1)
  if not positives or f1.max() <= default:
    return 0.5
  above, below = values[last], np.append(values[last][1:], 0)
  middle = (above + below) / 2
  cuts = np.where(middle > below, middle, above)[f1 == f1.max()]
  return float(cuts[np.abs(cuts - 0.5).argmin()])


def class_bias(
  scores: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
  """Biases, added to the classes' scores, that raise the mean F1 over all classes on these rows.

  One class at a time from zero, each to the best of all its biases, until none gains. A class that
  no row has keeps 0: nothing is known of it.

  Args:
    scores: [rows, classes] log probabilities or logits.
    target: [rows, classes] distributions; the first of equal classes is taken.
    mask: [rows] 1 = labelled; None = all.

  Returns:
    [classes] float64. The F1 with them is not below the F1 without.

  Raises:
    ValueError: labelled rows have scores that are not finite.
  """
  kept = np.ones(len(scores), bool) if mask is None else np.asarray(mask) > 0
  scores = np.asarray(scores, np.float64)[kept]
  if not np.isfinite(scores).all():
    raise ValueError("class biases: scores of labelled rows are not finite")
  actual = np.asarray(target)[kept].argmax(-1)
  support = np.bincount(actual, minlength=scores.shape[1])
  bias, gained = np.zeros(scores.shape[1]), True
  best = _macro_f1(scores.argmax(-1), actual, support)
  while gained:
    gained = False
    for k in np.flatnonzero(support) if len(bias) > 1 else []:
      trial = bias.copy()
      trial[k] += _best_shift(scores + bias, k, actual, support)
      f1 = _macro_f1((scores + trial).argmax(-1), actual, support)
      if f1 > best + _GAIN:
        bias, best, gained = trial, f1, True
  return bias


def _macro_f1(predicted: np.ndarray, actual: np.ndarray, support: np.ndarray) -> float:
  hits = np.bincount(actual[predicted == actual], minlength=len(support))
  total = support + np.bincount(predicted, minlength=len(support))
  return float((2 * hits / np.maximum(total, 1)).mean())


def _best_shift(scores: np.ndarray, k: int, actual: np.ndarray, support: np.ndarray) -> float:
  """What to add to class k for the largest mean F1; of equals the nearest to 0.

  As the shift grows, rows go over to the class one after the other, each from its next best class:
  the F1 after each is a sum.
  """
  classes = np.arange(scores.shape[1])
  others = np.where(classes == k, -np.inf, scores)
  rival = others.argmax(-1)
  critical = others.max(-1) - scores[:, k]
  order = np.argsort(critical, kind="stable")
  critical, rival, actual = critical[order], rival[order], actual[order]
  count = np.arange(len(critical) + 1)
  sums = lambda x: np.append(0, np.cumsum(x))
  total = 2 * sums(actual == k) / np.maximum(support[k] + count, 1)
  change = np.zeros(len(critical))
  for r in np.flatnonzero(classes != k):
    own = np.flatnonzero(rival == r)
    right = sums(actual[own] == r)
    left = len(own) - count[: len(own) + 1]
    change[own] = np.diff(2 * (right[-1] - right) / np.maximum(support[r] + left, 1))
  f1 = (total + sums(change)) / len(classes)  # less that of the others before
  # After how many rows a shift can stop: not between rows that go together.
  stops = np.flatnonzero(np.diff(critical, prepend=-np.inf, append=np.inf) > 0)
  edges = np.concatenate([[critical[0] - 2], critical, [critical[-1] + 2]])
  shifts = (edges[stops] + edges[stops + 1]) / 2
  best = f1[stops] >= f1[stops].max() - _GAIN
  return float(shifts[best][np.abs(shifts[best]).argmin()])


def blend(members: Sequence[np.ndarray], score: Callable[[np.ndarray], float]) -> np.ndarray:
  """Weights of an ensemble, non-negative with sum 1.

  From the best of equal weights and each member alone, one member's weight at a time, in twentieths
  with the others in proportion, until none gains.

  Args:
    members: [rows, size] each: logits, or values of valence and arousal.
    score: of a blend, on the rows to fit to.

  Returns:
    [members] float64; their score is not below that of equal weights or of any member alone.
  """
  count = len(members)
  of = lambda weights: score(mix(members, weights))
  starts = [np.full(count, 1 / count), *np.eye(count)] if count > 1 else [np.ones(1)]
  found = [of(weights) for weights in starts]
  best, gained = max(found), count > 1
  weights = starts[found.index(best)]
  while gained:
    gained = False
    for i in range(count):
      for share in _WEIGHTS:
        trial = _with_share(weights, i, share)
        if (value := of(trial)) > best + _GAIN:
          weights, best, gained = trial, value, True
  return weights


def _with_share(weights: np.ndarray, i: int, share: float) -> np.ndarray:
  rest = np.where(np.arange(len(weights)) == i, 0, weights)
  if not rest.any():
    rest = np.arange(len(weights)) != i
  weights = rest / rest.sum() * (1 - share)
  weights[i] = share
  return weights


def mix(members: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
  """The weighted sum of [rows, size] arrays, in float64."""
  parts = [w * np.asarray(m, np.float64) for m, w in zip(members, weights, strict=True) if w]
  return functools.reduce(np.add, parts)


def cross_fit(
  groups: np.ndarray,
  folds: int,
  fit: Callable[[np.ndarray], Any],
  apply: Callable[[Any, np.ndarray], np.ndarray],
  seed: int = 0,
) -> np.ndarray:
  """Outputs for every row, fitted to rows of other groups.

  Args:
    groups: [rows] video of each row; what must not be parted (left and right siblings, the videos
      of a person) is one group.
    folds: into which the groups are dealt.
    fit: rows [rows] bool -> whatever `apply` takes.
    apply: what was fitted to the other folds and the rows [rows] bool of one -> [its rows, ...].
    seed: of the deal.

  Returns:
    [rows, ...] what `apply` gave.

  Raises:
    ValueError: there are fewer groups than folds.
  """
  names, of_row = np.unique(groups, return_inverse=True)
  if not 2 <= folds <= len(names):
    raise ValueError(
      f"{folds} folds of {len(names)} groups of videos: use at least 2, at most as many as there"
      " are groups"
    )
  fold = np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)[of_row]
  own = [fold == k for k in range(folds)]
  parts = [apply(fit(~rows), rows) for rows in own]
  out = np.empty((len(fold), *parts[0].shape[1:]), parts[0].dtype)
  for rows, part in zip(own, parts, strict=True):
    out[rows] = part
  return out
