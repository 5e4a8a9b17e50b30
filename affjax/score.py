"""Official label files and predictions -> scores, as one JSON object on stdout.

  python -m affjax.score --task=mtl --labels=validation_set_annotations.txt --predictions=mine.txt
  python -m affjax.score --task=va --labels=Validation_Set/ --predictions=predictions.txt
  python -m affjax.score --task=expression --edition=2 --labels=FOLDER --predictions=FOLDER

Labels and predictions may each be one file or a folder of per-video files, in the format of any
edition. Predictions are found by the name of the image, never by their order; an image that is
listed twice counts twice. A table for people goes to stderr.
"""

import argparse
import functools
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from affjax import annotations, metrics
from affjax.labels import VA

# (prediction, target, mask) of each part of a task.
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
# Of ABAW, in which a task was posed, the newest first.
_EDITIONS = {"mtl": (11, 7, 4, 3), "va": tuple(range(10, 0, -1)), "lsd": (4,), "ce": (8, 7, 6)}


def score(
  task: str,
  labels: annotations.Annotations,
  predictions: annotations.Annotations,
  *,
  edition: int | None = None,
  missing: str = "error",
  resamples: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores predictions against labels, in float64.

  The score of a task is that of its challenge (Kollias, 2022, arXiv:2202.10659 and 2207.01138):
  the mean CCC of valence and arousal, pooled over all frames; the mean F1 over all expressions;
  the mean F1 of the positive class over all action units; for "mtl" the sum of the three, each over
  the rows that have its label. ABAW1-2 mixed accuracy into the latter two.

  Args:
    task: a key of `annotations.FORMATS`.
    labels: with the task's labels; rows without one do not count for it.
    predictions: of the same images, in any order; others are ignored.
    edition: of ABAW; None: the one that the labels' names belong to, else the newest.
    missing: "error": every labelled row needs a prediction; "skip": rows without are left out.
    resamples: bootstrap samples for 95 % intervals, drawn by video (LSD: by image); 0: none.
    seed: of the bootstrap.

  Returns:
    "score", its "floor" (what the best constant answer would score on these labels) and "formula";
    "rows" counted; for each part ("va", "expression", "au") its scores, floors and counts, each
    class and unit; "bootstrap" where asked for.

  Raises:
    ValueError: labels and predictions do not fit one another.
  """
  if not len(labels):
    raise ValueError("the labels have a header and no rows: there is nothing to score")
  edition = _edition(task, labels, edition)
  _check_names(labels, predictions)
  rows = _join(labels.images, predictions.images, _same_rows(predictions))
  parts = _parts(labels, predictions, rows)
  labelled = np.zeros(len(labels), bool)
  for _, _, mask in parts.values():
    labelled |= mask.reshape(len(labels), -1).any(1)
  _check_missing(labels, labelled & (rows < 0), missing)
  there = rows >= 0
  parts = {
    name: (p, t, m & there.reshape(-1, *[1] * (m.ndim - 1))) for name, (p, t, m) in parts.items()
  }
  with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    states = {name: metrics.to_host(_state(name, labels, *part)) for name, part in parts.items()}
    result: dict[str, Any] = {"task": task, "edition": edition, **_official(task, states, edition)}
    result["rows"] = {
      "labels": len(labels),
      "labelled": int(labelled.sum()),
      "scored": int((labelled & there).sum()),
      "skipped_unlabelled": int((~labelled).sum()),
      "skipped_without_prediction": int((labelled & ~there).sum()),
      "predictions": len(predictions),
      "predictions_not_in_labels": len(set(predictions.images) - set(labels.images)),
    }
    for name, state in states.items():
      result[name] = _PARTS[name](state, labels) | {"skipped_unlabelled": _skipped(name, labels)}
    if resamples:
      result["bootstrap"] = _bootstrap(task, labels, parts, edition, resamples, seed)
  return result


def _edition(task: str, labels: annotations.Annotations, edition: int | None) -> int:
  """The edition, given or the newest that had these names."""
  if task == "expression":
    allowed = (2, 1) if len(labels.classes) == 7 else (10, 9, 8, 7, 6, 5, 4, 3)
  elif task == "au":
    allowed = (1,) if len(labels.units) == 8 else tuple(range(10, 1, -1))
  else:
    allowed = _EDITIONS[task]
  if edition is None:
    return allowed[0]
  if edition not in allowed:
    names = ", ".join((*labels.classes, *labels.units)) or "valence, arousal"
    raise ValueError(
      f"--edition={edition}: labels of task {task} with {names} are those of ABAW"
      f" {', '.join(map(str, sorted(allowed)))}"
    )
  return edition


def _check_names(labels: annotations.Annotations, predictions: annotations.Annotations) -> None:
  for what, ours, theirs in (
    ("expressions", labels.classes, predictions.classes),
    ("action units", labels.units, predictions.units),
  ):
    if ours != theirs:
      raise ValueError(
        f"the labels have the {what} {', '.join(ours)}, the predictions {', '.join(theirs)}: their"
        " headers must be of one edition"
      )


def _same_rows(predictions: annotations.Annotations) -> Any:
  """(i, j) -> whether two rows hold the same answer."""
  columns = [c for c in (predictions.va, predictions.expression, predictions.au) if c is not None]
  return lambda i, j: all(np.array_equal(column[i], column[j]) for column in columns)


def _join(labels: Sequence[str], predictions: Sequence[str], same: Any) -> np.ndarray:
  """[labels] row of the prediction of each label, -1 where there is none.

  Of an image that is listed several times the k-th label belongs to the k-th prediction; where the
  numbers differ all of its predictions must be the same.
  """
  rows = defaultdict(list)
  for row, image in enumerate(predictions):
    rows[image].append(row)
  wanted: dict[str, int] = defaultdict(int)
  for image in labels:
    wanted[image] += 1
  seen: dict[str, int] = defaultdict(int)
  found = np.full(len(labels), -1)
  for i, image in enumerate(labels):
    candidates = rows.get(image)
    if candidates is None:
      continue
    k = seen[image]
    seen[image] += 1
    if len(candidates) == wanted[image]:
      found[i] = candidates[k]
    elif all(same(candidates[0], other) for other in candidates[1:]):
      found[i] = candidates[0]
    else:
      raise ValueError(
        f"{image} has {wanted[image]} labels and {len(candidates)} predictions that differ: predict"
        " it once, or once for each label"
      )
  return found


def _parts(
  labels: annotations.Annotations, predictions: annotations.Annotations, rows: np.ndarray
) -> dict[str, Arrays]:
  """(prediction, target, mask) of "va", "expression" and "au", as the labels have them.

  Where there is no prediction stands that of row 0: it will be masked.
  """
  parts: dict[str, Arrays] = {}
  at = np.maximum(rows, 0)
  take = lambda column: column[at] if len(column) else np.zeros((len(rows), *column.shape[1:]))
  if labels.va is not None:
    known = ~np.isnan(labels.va)
    parts["va"] = (take(predictions.va), np.where(known, labels.va, 0.0), known)
  if labels.expression is not None:
    known = labels.expression >= 0
    parts["expression"] = (take(predictions.expression), np.maximum(labels.expression, 0), known)
  if labels.au is not None:
    parts["au"] = (take(predictions.au), np.maximum(labels.au, 0), labels.au >= 0)
  return parts


def _check_missing(labels: annotations.Annotations, lacking: np.ndarray, missing: str) -> None:
  if missing not in ("error", "skip"):
    raise ValueError(f"--missing={missing}: use error or skip")
  if missing == "error" and lacking.any():
    first = [labels.images[i] for i in np.flatnonzero(lacking)[:3]]
    raise ValueError(
      f"{lacking.sum()} of {len(labels)} rows have a label but no prediction (first:"
      f" {', '.join(first)}): predict them, or leave them out of the score with --missing=skip"
    )


def _state(
  name: str,
  labels: annotations.Annotations,
  prediction: np.ndarray,
  target: np.ndarray,
  mask: np.ndarray,
) -> Any:
  """The metric's state of some rows."""
  if name == "va":
    return metrics.CCC.from_model_output(prediction, target, mask)
  if name == "au":
    return metrics.BinaryCounts.from_model_output(prediction, target, mask, threshold=0.5)
  return metrics.Confusion.from_classes(prediction, target, mask, num_classes=len(labels.classes))


def _official(task: str, states: Mapping[str, Any], edition: int) -> dict[str, Any]:
  """The task's one number, and that of the best constant answer."""
  if task == "va":
    return {"score": float(states["va"].compute().mean()), "floor": 0.0, "formula": "mean CCC"}
  if task == "mtl":
    parts = [states["va"].compute(), *(states[n].compute()["f1"] for n in ("expression", "au"))]
    floors = [states["va"].floor(), *(states[n].floor()["f1"] for n in ("expression", "au"))]
    formula = "mean CCC + F1 of expressions + F1 of units"
    return {
      "score": float(metrics.p_mtl(*parts)),
      "floor": float(metrics.p_mtl(*floors)),
      "formula": formula,
    }
  state = states["au" if task == "au" else "expression"]
  scores, floor = state.compute(), state.floor()
  if edition > 2:
    return {"score": float(scores["f1"]), "floor": float(floor["f1"]), "formula": "mean F1"}
  if task == "expression":
    mixed = lambda s: float(metrics.expression_abaw2(s["f1"], s["accuracy"]))
    return {"score": mixed(scores), "floor": mixed(floor), "formula": ".67 F1 + .33 accuracy"}
  return {
    "score": float(metrics.au_abaw2(scores["f1"], scores["accuracy"])),
    "floor": _au_abaw2_floor(state),
    "formula": ".5 F1 + .5 accuracy",
  }


def _au_abaw2_floor(state: metrics.BinaryCounts) -> float:
  """Each unit always on or always off, whichever is better: the score is a sum over units."""
  positive = state.true_positive + state.false_negative
  negative = state.false_positive + state.true_negative
  entries = max((positive + negative).sum(), 1)
  on = 0.5 * state.floor()["f1_per_unit"] / len(positive) + 0.5 * positive / entries
  return float(np.maximum(on, 0.5 * negative / entries).sum())


def _va(state: metrics.CCC, labels: annotations.Annotations) -> dict[str, Any]:
  ccc = state.compute().tolist()
  return {
    "ccc": float(np.mean(ccc)),
    **dict(zip(VA, ccc, strict=True)),
    "floor": 0.0,
    "scored": dict(zip(VA, state.count.tolist(), strict=True)),
  }


def _expression(state: metrics.Confusion, labels: annotations.Annotations) -> dict[str, Any]:
  scores, floor = state.compute(), state.floor()
  named = lambda values: dict(zip(labels.classes, values.tolist(), strict=True))
  return {
    "f1": float(scores["f1"]),
    "accuracy": float(scores["accuracy"]),
    "floor": {name: float(value) for name, value in floor.items()},
    "f1_per_class": named(scores["f1_per_class"]),
    "support": named(state.counts.sum(1)),
    "predicted": named(state.counts.sum(0)),
    "scored": int(state.counts.sum()),
  }


def _au(state: metrics.BinaryCounts, labels: annotations.Annotations) -> dict[str, Any]:
  scores, floor = state.compute(), state.floor()
  named = lambda values: dict(zip(labels.units, values.tolist(), strict=True))
  positive = state.true_positive + state.false_negative
  return {
    "f1": float(scores["f1"]),
    "accuracy": float(scores["accuracy"]),
    "floor": {"f1": float(floor["f1"])},
    "f1_per_unit": named(scores["f1_per_unit"]),
    "floor_per_unit": named(floor["f1_per_unit"]),
    "positive": named(positive),
    "predicted": named(state.true_positive + state.false_positive),
    "scored": named(positive + state.false_positive + state.true_negative),
  }


_PARTS = {"va": _va, "expression": _expression, "au": _au}


def _skipped(name: str, labels: annotations.Annotations) -> Any:
  """How many rows lack the label: of each dimension, of the expression, of each unit."""
  if name == "va":
    return dict(zip(VA, np.isnan(labels.va).sum(0).tolist(), strict=True))
  if name == "expression":
    return int((labels.expression < 0).sum())
  return dict(zip(labels.units, (labels.au < 0).sum(0).tolist(), strict=True))


def _bootstrap(
  task: str,
  labels: annotations.Annotations,
  parts: Mapping[str, Arrays],
  edition: int,
  resamples: int,
  seed: int,
) -> dict[str, Any]:
  """95 % intervals of the score and its parts over samples of videos, drawn with replacement.

  Frames of a video are far from independent: intervals over frames would be much too narrow.
  """
  names = [image.rpartition("/")[0] or image for image in labels.images]
  groups, of_row = np.unique(names, return_inverse=True)
  if len(groups) < 2:
    raise ValueError("--bootstrap needs labels of at least two videos")
  if resamples < 0 or seed < 0:
    raise ValueError(f"--bootstrap={resamples} --seed={seed}: use numbers from 0 on")
  drawn = np.random.default_rng(seed).multinomial(
    len(groups), np.full(len(groups), 1 / len(groups)), size=resamples
  )
  order = np.argsort(of_row, kind="stable")
  rows = np.split(order, np.flatnonzero(np.diff(of_row[order])) + 1)
  samples: dict[str, Any] = {}
  for name, part in parts.items():
    of_group = jax.jit(functools.partial(_state, name, labels))
    states = [metrics.to_host(of_group(*_padded(part, own))) for own in rows]
    times = (_times(state, drawn[:, g]) for g, state in enumerate(states))
    samples[name] = functools.reduce(lambda a, b: a.merge(b), times)
  values: dict[str, list[float]] = defaultdict(list)
  for i in range(resamples):
    states = {name: jax.tree.map(lambda x, i=i: x[i], state) for name, state in samples.items()}
    values["score"].append(_official(task, states, edition)["score"])
    for name, state in states.items():
      scores = state.compute()
      mean = scores.mean() if name == "va" else scores["f1"]
      values[f"{name}/{'ccc' if name == 'va' else 'f1'}"].append(float(mean))
  intervals = {name: np.percentile(v, [2.5, 97.5]).tolist() for name, v in values.items()}
  return {
    "resamples": resamples,
    "groups": len(groups),
    "seed": seed,
    "interval": 0.95,
    **intervals,
  }


def _padded(part: Arrays, rows: np.ndarray) -> Arrays:
  """Some rows, padded to a power of two with masked ones: few shapes, few compilations."""
  size = 1 << (len(rows) - 1).bit_length()
  prediction, target, mask = (
    np.pad(x[rows], [(0, size - len(rows))] + [(0, 0)] * (x.ndim - 1)) for x in part
  )
  return prediction, target, mask


def _times(state: Any, times: np.ndarray) -> Any:
  """A state as if its rows occurred [resamples] times; every array gets that first axis."""
  fields = {}
  for name, value in vars(state).items():
    repeated = np.broadcast_to(value, (len(times), *value.shape))
    weight = times.reshape(-1, *[1] * value.ndim)
    fields[name] = repeated if name.startswith("mean_") else repeated * weight
  return type(state)(**fields)


def table(result: Mapping[str, Any]) -> str:
  """The scores as text, each beside its floor."""
  interval = lambda name: (
    "" if "bootstrap" not in result else "  [{:.4f}, {:.4f}]".format(*result["bootstrap"][name])
  )
  lines = [
    f"{result['task']} (ABAW{result['edition']}): {result['score']:.4f}"
    f"{interval('score')}   floor {result['floor']:.4f}   = {result['formula']}"
  ]
  each = lambda values: "  ".join(f"{name} {value:.4f}" for name, value in values.items())
  if "va" in result:
    va = result["va"]
    lines.append(f"  CCC {va['ccc']:.4f}{interval('va/ccc')}: {each({n: va[n] for n in VA})}")
  if "expression" in result:
    e = result["expression"]
    lines.append(
      f"  expression F1 {e['f1']:.4f}{interval('expression/f1')} (floor {e['floor']['f1']:.4f}),"
      f" accuracy {e['accuracy']:.4f} ({e['floor']['accuracy']:.4f}): {each(e['f1_per_class'])}"
    )
    absent = [name for name, count in e["support"].items() if not count]
    if absent:
      lines.append(f"    in no label, so 0: {', '.join(absent)}")
  if "au" in result:
    a = result["au"]
    lines.append(
      f"  unit F1 {a['f1']:.4f}{interval('au/f1')} (floor {a['floor']['f1']:.4f}), accuracy"
      f" {a['accuracy']:.4f}: {each(a['f1_per_unit'])}"
    )
  rows = result["rows"]
  lines.append(
    f"  rows: {rows['scored']} scored of {rows['labels']}; {rows['skipped_unlabelled']} without any"
    f" label, {rows['skipped_without_prediction']} without a prediction;"
    f" {rows['predictions_not_in_labels']} predicted images are in no label"
  )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.score",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--task", required=True, choices=list(annotations.FORMATS))
  parser.add_argument(
    "--labels", required=True, help="file or folder; for lsd also the tree of the class folders"
  )
  parser.add_argument("--predictions", required=True, help="file or folder")
  parser.add_argument(
    "--edition",
    type=int,
    metavar="N",
    help="of ABAW, 1 to 11; by default the newest with these labels; 1 and 2 mix F1 and accuracy",
  )
  parser.add_argument(
    "--missing",
    default="error",
    choices=["error", "skip"],
    help="what to do about labelled rows without a prediction; skip leaves them out of the score",
  )
  parser.add_argument(
    "--bootstrap",
    type=int,
    default=0,
    metavar="N",
    help="95 %% intervals from N samples of the videos, e.g. 1000",
  )
  parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
  arguments = parser.parse_args(argv)
  try:
    labels = annotations.read(arguments.labels, arguments.task)
    predictions = annotations.read(arguments.predictions, arguments.task, predictions=True)
    result = score(
      arguments.task,
      labels,
      predictions,
      edition=arguments.edition,
      missing=arguments.missing,
      resamples=arguments.bootstrap,
      seed=arguments.seed,
    )
  except ValueError as e:
    sys.exit(f"error: {e}")
  print(table(result), file=sys.stderr)
  print(json.dumps(result, indent=1))


if __name__ == "__main__":
  main()
