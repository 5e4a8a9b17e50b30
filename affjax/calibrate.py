"""Post-processing that is fitted to labels: what it gains on them, and on videos it did not see.

  python -m affjax.calibrate features/run --split=validation
  python -m affjax.calibrate features/a features/b --save=settings.json

An input is a folder of `python -m affjax.extract`, or one of the .npz files in it; several are an
ensemble. Its rows are found by their keys, and what models give for them is blended as logits.

Three things are fitted, each alone and all in this order: the weights of an ensemble; the smoothing
of each task, none among the candidates; biases of expressions and thresholds of units. Each has two
rows: "in-sample" is fitted to the very labels that it is scored on, and so never below raw and too
high; "cross-fitted by video" is fitted to other videos and people. Only the latter says what to
expect of a test set. --save keeps what all rows together give, for `python -m affjax.submit
--postprocess=FILE`:

  {"va": {"smooth": {"kind": "mean", "width": 51, "causal": false, "max_gap": null}},
   "expression": {"smooth": {...}, "bias": {"neutral": -0.3, ...}},
   "au": {"smooth": {...}, "threshold": {"AU1": 0.31, ...}},
   "fitted_on": {...}}

Any of it may be left out; in that of an ensemble each task has its "weights" as well.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import special

from affjax import metrics, postprocess
from affjax.data import features, records, selection
from affjax.labels import TASKS
from tfds_builders import progress

# What smoothing may be, in frames: of windows the length, of a Gaussian the standard deviation.
WIDTHS = {
  "mean": (5, 11, 25, 51, 101, 201),
  "median": (5, 11, 25, 51),
  "gaussian": (2, 5, 10, 25, 50),
}
_SCORES = {"va": "va/ccc", "expression": "expression/f1", "au": "au/f1"}
_FITTED = {"expression": "bias", "au": "threshold"}
# What can be fitted -> its name in the table.
_STAGES = {"blend": "blend", "smooth": "smoothing", "decide": "biases and thresholds"}
_HOW = ("in-sample", "cross-fitted by video")
# Of the rows; a data set may lack all but the keys.
_COLUMNS = {"key": None, "video": b"", "person": b"", "frame": -1}
# Task -> what its settings may hold.
_FIELDS = {
  "va": {"weights", "smooth"},
  "expression": {"weights", "smooth", "bias"},
  "au": {"weights", "smooth", "threshold"},
}

# Of one model, task -> [rows, size]: `va` values, the others logits.
Outputs = Mapping[str, np.ndarray]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Rows:
  """What is calibrated on.

  Attributes:
    members: outputs of each model.
    labels: task -> [rows, size], as batches have them.
    mask: task -> [rows, size], of "expression" [rows]; 1 = labelled.
    names: task -> names of the outputs.
    scored: task -> those of them that the scores count; tasks that are not there: all.
    frames: [rows] frame numbers.
    series: [rows] which rows are of one person in one video.
    groups: [rows] which rows are of one fold: see `affjax.data.selection.groups`.
  """

  members: tuple[Outputs, ...]
  labels: Mapping[str, np.ndarray]
  mask: Mapping[str, np.ndarray]
  names: Mapping[str, Sequence[str]]
  scored: Mapping[str, Sequence[str]]
  frames: np.ndarray
  series: np.ndarray
  groups: np.ndarray

  @property
  def tasks(self) -> tuple[str, ...]:
    """Tasks that every model has outputs for and some row has a label for."""
    has = lambda task: all(task in member for member in self.members)
    return tuple(t for t in TASKS if t in self.labels and has(t) and self.mask[t].any())


def read_rows(inputs: Sequence[str | Path], split: str) -> Rows:
  """Reads what models gave for a split.

  Args:
    inputs: folders of `affjax.extract`, or .npz files in them.
    split: whose file is taken of a folder.

  Raises:
    ValueError: a file is missing or broken, or the inputs are not of the same rows and labels.
  """
  found = [_read_file(Path(i), split) for i in inputs]
  first, described = found[0]
  for name, (arrays, its) in zip(inputs[1:], found[1:], strict=True):
    if not np.array_equal(first["key"], arrays["key"]):
      raise ValueError(
        f"{inputs[0]} and {name} hold different rows: extract the same split of both"
      )
    if described["labels"] != its["labels"]:
      raise ValueError(f"{inputs[0]} and {name} have other labels: use models of the same labels")
    given = [n for n in first if n in arrays and not n.startswith("outputs/")]
    if differ := [n for n in given if not np.array_equal(first[n], arrays[n])]:
      raise ValueError(
        f"{inputs[0]} and {name} differ in {differ[0]}: use one view of one data set"
      )
  return Rows(
    members=tuple(_part(arrays, "outputs") for arrays, _ in found),
    labels=_part(first, "labels"),
    mask=_part(first, "mask"),
    names=described["labels"],
    scored=described.get("scored", {}),
    frames=first["frame"],
    series=_series(first),
    groups=selection.groups({name: first[name] for name in ("key", "video", "person")}),
  )


def _read_file(path: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Arrays of an .npz file but its features, in the order of the keys, and what is said of them."""
  path = path if path.is_file() else path / f"{split}.npz"
  try:
    with np.load(path, allow_pickle=False) as file:
      wanted = [n for n in file.files if n in _COLUMNS or n.partition("/")[2] in TASKS]
      arrays = {name: file[name] for name in wanted}
    described = json.loads((path.parent / features.DESCRIBED).read_bytes())
  except (OSError, ValueError, EOFError, zipfile.BadZipFile, RecursionError) as e:
    why = " ".join(str(getattr(e, "strerror", None) or e).split())
    raise ValueError(f"{path}: it or {features.DESCRIBED} beside it cannot be read ({why})") from e
  labels = described.get("labels") if isinstance(described, dict) else None
  if not isinstance(labels, dict) or not all(isinstance(x, list) for x in labels.values()):
    said = path.parent / features.DESCRIBED
    raise ValueError(f"{said}: it says nothing of labels; run affjax.extract again")
  _check_arrays(path, arrays, labels)
  for name, none in _COLUMNS.items():
    arrays.setdefault(name, np.full(len(arrays["key"]), none))
  # Rows of one key stay in their order: the first of one file goes with the first of another.
  order = np.argsort(arrays["key"], kind="stable")
  return {name: values[order] for name, values in arrays.items()}, described


def _check_arrays(
  path: Path, arrays: Mapping[str, np.ndarray], labels: Mapping[str, Sequence[str]]
) -> None:
  given = {*_part(arrays, "labels"), *_part(arrays, "mask")}
  needed = {"key", *(f"{what}/{task}" for task in given for what in ("labels", "mask"))}
  if lacking := sorted(needed - set(arrays)):
    raise ValueError(f"{path}: it lacks {', '.join(lacking)}; run affjax.extract again")
  rows = len(arrays["key"])
  for name, values in arrays.items():
    task = name.partition("/")[2]
    size = (rows, len(labels.get(task, ()))) if task else (rows,)
    if values.shape != ((rows,) if name == "mask/expression" else size):
      raise ValueError(f"{path}: {name} has shape {values.shape}, expected {size}")
  for task, values in _part(arrays, "outputs").items():
    if not np.isfinite(values).all():
      raise ValueError(f"{path}: outputs/{task} are not all finite: was the run a good one?")


def _part(arrays: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
  """Arrays named `what/TASK`, by task."""
  return {n.partition("/")[2]: x for n, x in arrays.items() if n.startswith(f"{what}/")}


def _series(table: Mapping[str, np.ndarray]) -> np.ndarray:
  """[rows] number of the person in the video; a row that is no frame of any has its own."""
  video, person = (np.unique(table[n], return_inverse=True)[1] for n in ("video", "person"))
  rows = np.arange(len(video))
  moving = (table["video"] != b"") & (table["frame"] >= 0)  # photographs of one person are not
  return np.where(moving, video * len(rows) + person, len(rows) ** 2 + rows)


class _Task:
  """Fits and applies what there is for one task."""

  def __init__(self, task: str, rows: Rows, windows: Sequence[dict[str, Any]], bar: Any) -> None:
    self.task, self._rows, self._bar = task, rows, bar
    self._windows = [{}, *({"smooth": window} for window in windows)]
    self._names = list(rows.names[task])
    scored = rows.scored.get(task, self._names)
    self._columns = tuple(self._names.index(name) for name in scored)
    self._target, self._mask = rows.labels[task].astype(np.float64), rows.mask[task] > 0
    if task == "expression":
      classes = self._target.argmax(-1)
      self._target = np.eye(len(self._names))[classes]
      self._mask = self._mask & np.isin(classes, self._columns)
    self._logits = [member[task] for member in rows.members]
    # Candidates are scored again for each fold.
    self._cached = functools.lru_cache(len(self._windows) + 1)(self._smoothed)

  def fit(self, stages: Sequence[str], rows: np.ndarray | None = None) -> dict[str, Any]:
    """Settings of the stages, fitted to rows [rows] bool; None: to all."""
    found = self._unfitted()
    if "blend" in stages:
      raw = lambda x: _decide(self.task, _probability(self.task, x), {}, self._names)
      score = lambda x: self.score(raw(x), rows)
      found["weights"] = postprocess.blend(self._logits, score).tolist()
    if "smooth" in stages:
      scores = [self.score(self.apply(found | window), rows) for window in self._windows]
      found |= self._windows[int(np.argmax(scores))]
    if "decide" in stages and self.task in _FITTED:
      found[_FITTED[self.task]] = self._decisions(found, rows)
    self._bar.update()
    return found

  def _unfitted(self) -> dict[str, Any]:
    """Equal weights, of an ensemble."""
    count = len(self._logits)
    return {"weights": [1 / count] * count} if count > 1 else {}

  def _decisions(self, settings: Mapping[str, Any], rows: np.ndarray | None) -> dict[str, float]:
    columns = np.array(self._columns, int)
    target, mask = self._target[:, columns], self._masked(rows)
    if self.task == "expression":
      values = postprocess.class_bias(self.apply(settings)[:, columns], target, mask)
    else:
      probability = self._values(settings)[:, columns]
      values = postprocess.thresholds(probability, target, mask[:, columns])
    return {self._names[i]: float(v) for i, v in zip(self._columns, values, strict=True)}

  def apply(self, settings: Mapping[str, Any]) -> np.ndarray:
    """What settings make of all rows."""
    return _decide(self.task, self._values(settings), settings, self._names)

  def _values(self, settings: Mapping[str, Any]) -> np.ndarray:
    window = {name: value for name, value in settings.items() if name == "smooth"}
    return self._cached(tuple(settings.get("weights", ())), self._windows.index(window))

  def _smoothed(self, weights: tuple[float, ...], window: int) -> np.ndarray:
    settings = self._windows[window] | ({"weights": weights} if weights else {})
    present = np.ones(len(self._rows.frames), bool)
    return _smoothed(
      self.task, self._logits, self._rows.frames, present, settings, self._rows.series
    )

  def _masked(self, rows: np.ndarray | None) -> np.ndarray:
    return self._mask if rows is None else (self._mask.T & rows).T

  def _state(self, scores: np.ndarray, rows: np.ndarray | None = None) -> Any:
    """The metric of the task, on rows [rows] bool; None: on all."""
    # Rows are masked, not left out: one shape, one compilation.
    state = _state(scores, self._target, self._masked(rows), self.task, self._columns)
    return metrics.to_host(state)

  def score(self, scores: np.ndarray, rows: np.ndarray | None = None) -> float:
    """The challenges' score of the task."""
    return _main(self.task, self._state(scores, rows).compute())

  def cross_fitted(self, stages: Sequence[str], folds: int, seed: int) -> float:
    """The score of what is fitted to other videos."""
    fit = functools.partial(self.fit, stages)
    apply = lambda settings, own: self.apply(settings)[own]
    return self.score(postprocess.cross_fit(self._rows.groups, folds, fit, apply, seed))

  def constant_and_raw(self, members: Sequence[str]) -> dict[tuple[str, str], float]:
    """The rows of the table in which nothing is fitted; those of an ensemble are named."""
    raw, several = self.apply(self._unfitted()), len(self._logits) > 1
    found = {("best constant", ""): _main(self.task, self._state(raw).floor())}
    for weights, name in zip(np.eye(len(members)), members, strict=True) if several else ():
      found[f"raw {name}", ""] = self.score(self.apply({"weights": weights.tolist()}))
    found["raw, equal weights" if several else "raw", ""] = self.score(raw)
    return found


@functools.partial(jax.jit, static_argnums=(3, 4))
def _state(scores: Any, target: Any, mask: Any, task: str, columns: tuple[int, ...]) -> Any:
  if task == "expression":
    return metrics.Confusion.from_model_output(scores, target, mask, classes=columns)
  metric = metrics.CCC if task == "va" else metrics.BinaryCounts
  of = np.array(columns, int)
  return metric.from_model_output(scores[:, of], target[:, of], mask[:, of])


def _main(task: str, scores: Any) -> float:
  return float(np.mean(scores) if task == "va" else scores["f1"])


def candidates(causal: bool = False, max_gap: int | None = None) -> list[dict[str, Any]]:
  """The smoothings to choose from."""
  return [
    {"kind": kind, "width": width, "causal": causal, "max_gap": max_gap}
    for kind, widths in WIDTHS.items()
    for width in widths
  ]


def calibrate(
  rows: Rows,
  tasks: Sequence[str],
  windows: Sequence[dict[str, Any]],
  *,
  folds: int = 5,
  seed: int = 0,
  members: Sequence[str] = (),
) -> tuple[dict[tuple[str, str], Scores], dict[str, Any]]:
  """Fits all that can be fitted, alone and together.

  Args:
    rows: to fit and to score on.
    tasks: of `rows.tasks`.
    windows: smoothings to choose from, settings of `postprocess.smooth`; none: do not smooth.
    folds: of the cross-fit.
    seed: of the deal of videos into folds.
    members: names of the models of an ensemble.

  Returns:
    (what was done, "" or one of the ways of fitting) -> scores: `va/ccc`, `expression/f1`, `au/f1`
    and, with all three, `p_mtl`. And the settings that all stages give on all rows.

  Raises:
    ValueError: more folds than groups of videos.
  """
  able = {"blend": len(rows.members) > 1, "smooth": bool(windows), "decide": True}
  sets = {name: (stage,) for stage, name in _STAGES.items() if able[stage]}
  if len(sets) > 1:
    sets["all of these"] = tuple(stage for stage in _STAGES if able[stage])
  table: dict[tuple[str, str], Scores] = {}
  settings = {}
  bar = progress.bar(range(len(tasks) * len(sets) * (folds + 1)), "fitting", "fits")
  with bar, jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
    for task in tasks:
      one = _Task(task, rows, windows, bar)
      column = one.constant_and_raw(members)
      for name, stages in sets.items():
        settings[task] = one.fit(stages)  # the last ones stay
        column[name, _HOW[0]] = one.score(one.apply(settings[task]))
        column[name, _HOW[1]] = one.cross_fitted(stages, folds, seed)
      for row, score in column.items():
        table.setdefault(row, {})[_SCORES[task]] = score
  if len(tasks) == len(TASKS):
    for scores in table.values():
      scores["p_mtl"] = float(metrics.p_mtl(*(scores[_SCORES[task]] for task in TASKS)))
  return table, settings


def as_text(table: Mapping[tuple[str, str], Scores]) -> str:
  """The scores as text."""
  columns = list(next(iter(table.values())))
  wide = max(len(name) for name, _ in table)
  widest = max(len(how) for _, how in table)
  lines = [" " * (wide + widest + 2) + "".join(f"  {c:>13}" for c in columns)]
  last = ""
  for (name, how), scores in table.items():
    shown, last = ("" if name == last else name), name
    numbers = "".join(f"  {scores[c]:13.4f}" for c in columns)
    lines.append(f"{shown:{wide}}  {how:{widest}}{numbers}")
  return "\n".join(lines)


def _chosen(settings: Mapping[str, Any]) -> str:
  """Settings of one task in a line."""
  parts = []
  if "weights" in settings:
    parts.append(f"weights {' '.join(f'{w:.3g}' for w in settings['weights'])}")
  smooth = settings.get("smooth")
  parts.append(f"{smooth['kind']} {smooth['width']}" if smooth else "not smoothed")
  for field in set(_FITTED.values()) & set(settings):
    parts.append(f"{field} {', '.join(f'{n} {v:.3g}' for n, v in settings[field].items())}")
  return "; ".join(parts)


def read(path: str | Path) -> dict[str, Any]:
  """Reads settings, as the top of this module has them.

  Raises:
    ValueError: the file cannot be read, or holds what settings have not.
  """
  try:
    settings = json.loads(Path(path).read_bytes())
  except (OSError, ValueError, RecursionError) as e:
    why = "".join(c if c.isprintable() else "?" for c in str(getattr(e, "strerror", None) or e))
    raise ValueError(f"{path}: cannot be read as settings ({why})") from e
  try:
    _check(settings)
  except ValueError as e:
    raise ValueError(
      f"{path}: {e}; `python -m affjax.calibrate --save` writes such files"
    ) from None
  return settings


def _check(settings: Any) -> None:
  known = {*_FIELDS, "fitted_on"}
  if not isinstance(settings, dict) or not set(settings) <= known:
    found = sorted(set(settings) - known) if isinstance(settings, dict) else settings
    raise ValueError(f"{_short(found)}: settings may hold {', '.join(sorted(known))}")
  for task, fields in _FIELDS.items():
    own = settings.get(task, {})
    if not isinstance(own, dict) or not set(own) <= fields:
      found = sorted(set(own) - fields) if isinstance(own, dict) else own
      raise ValueError(f"{task}: {_short(found)}: it may hold {', '.join(sorted(fields))}")
    if "smooth" in own:
      postprocess.check_window(own["smooth"])
    for name in {"bias", "threshold"} & set(own):
      if not isinstance(own[name], dict) or not all(map(postprocess.is_number, own[name].values())):
        raise ValueError(f"{task}.{name}: {_short(own[name])}: use a number for each name")
    weights = own.get("weights", [1])
    if not isinstance(weights, list) or not all(
      postprocess.is_number(w) and w >= 0 for w in weights
    ):
      raise ValueError(f"{task}.weights: {_short(weights)}: use a number from 0 on for each model")
    if not math.isclose(sum(weights), 1, abs_tol=1e-6):
      raise ValueError(f"{task}.weights: they sum to {sum(weights)}: use numbers that sum to 1")


def _short(found: Any) -> str:
  text = repr(found)
  return text if len(text) <= 80 else f"{text[:77]}..."


def apply(
  outputs: Outputs | Sequence[Outputs],
  frames: np.ndarray,
  present: np.ndarray,
  settings: Mapping[str, Any],
  labels: Mapping[str, Sequence[str]],
  groups: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Outputs as settings have them; settings of tasks that are not among the outputs are not used.

  Args:
    outputs: task -> [rows, size] of a model, or those of each model of an ensemble in the order in
      which it was calibrated. `va` values, the others logits.
    frames: [rows] integers.
    present: [rows] bool; False: absent, the outputs are not looked at.
    settings: from `read`; {} changes no decision.
    labels: task -> names of the columns.
    groups: [rows] video of each row; None: all rows are of one.

  Returns:
    Task -> [rows, size] float64. "va": values. "expression": log probabilities, smoothed and with
    their bias: the largest is the prediction. "au": probabilities less their thresholds: a unit is
    on from 0. NaN in rows that are absent and have no present one within reach.

  Raises:
    ValueError: the settings are of another number of models or name what the labels lack.
  """
  members = [outputs] if isinstance(outputs, Mapping) else outputs
  found = {}
  for task in members[0]:
    own = settings.get(task, {})
    logits = [member[task] for member in members]
    values = _smoothed(task, logits, frames, present, own, groups)
    found[task] = _decide(task, values, own, labels[task])
  return found


def _smoothed(
  task: str,
  members: Sequence[np.ndarray],
  frames: np.ndarray,
  present: np.ndarray,
  settings: Mapping[str, Any],
  groups: np.ndarray | None = None,
) -> np.ndarray:
  """The first half of `apply`, for one task: [rows, size] values or probabilities.

  Logits are blended; it is probabilities that are smoothed.
  """
  present = np.asarray(present, bool)
  weights = settings.get("weights", [1.0])
  if len(weights) != len(members):
    raise ValueError(
      f"the settings of {task} are of {len(weights)} models, the outputs of {len(members)}: use"
      " those that were calibrated together"
    )
  values = postprocess.mix(members, weights)
  values[~present] = np.nan
  values = _probability(task, values)
  if "smooth" in settings:
    values = postprocess.smooth(values, frames, present, groups=groups, **settings["smooth"])
  return values


def _probability(task: str, values: np.ndarray) -> np.ndarray:
  if task == "va":
    return values
  return special.softmax(values, axis=-1) if task == "expression" else special.expit(values)


def _decide(
  task: str, values: np.ndarray, settings: Mapping[str, Any], names: Sequence[str]
) -> np.ndarray:
  """The second half of `apply`: [rows, size] values or probabilities -> what decides."""
  field = _FITTED.get(task, "")
  fitted = settings.get(field, {})
  if unknown := sorted(set(fitted) - set(names)):
    raise ValueError(
      f"the settings have a {field} of {', '.join(unknown)}, the outputs of {task} are"
      f" {', '.join(names)}: calibrate this model's"
    )
  if task == "va":
    return values
  if task == "au":
    # A difference has the sign of the comparison, to the last bit.
    return values - [fitted.get(name, 0.5) for name in names]
  smallest = np.finfo(np.float64).tiny
  return np.log(np.maximum(values, smallest)) + [fitted.get(name, 0.0) for name in names]


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.calibrate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("inputs", nargs="+", metavar="FOLDER_OR_NPZ", help="of affjax.extract")
  parser.add_argument("--split", default="validation", help="whose file of a folder; %(default)s")
  parser.add_argument("--tasks", help="such as va,au; by default all that have outputs and labels")
  parser.add_argument("--folds", type=int, default=5, help="of the cross-fit; %(default)s")
  parser.add_argument("--seed", type=int, default=0, help="of the deal of videos into folds")
  parser.add_argument("--causal", action="store_true", help="smooth over earlier frames alone")
  parser.add_argument(
    "--max_gap",
    type=int,
    metavar="N",
    help="do not smooth across jumps of more than N frame numbers; by default however far",
  )
  parser.add_argument("--save", metavar="FILE", help="for the settings, a .json file")
  arguments = parser.parse_args(argv)
  try:
    _run(arguments)
  except ValueError as e:
    sys.exit(f"error: {e}")


def _run(arguments: argparse.Namespace) -> None:
  save = Path(arguments.save) if arguments.save else None
  if save and (save.suffix != ".json" or save.is_dir() or not save.parent.is_dir()):
    raise ValueError(f"--save={save}: use a .json file in a folder that is there")
  windows = candidates(arguments.causal, arguments.max_gap)
  for window in windows:
    postprocess.check_window(window)
  rows = read_rows(arguments.inputs, arguments.split)
  tasks = _tasks(arguments.tasks, rows.tasks)
  still = len(np.unique(rows.series)) == len(rows.series)
  if still:
    print("no row has others of its video: smoothing is left out")
  table, settings = calibrate(
    rows,
    tasks,
    [] if still else windows,
    folds=arguments.folds,
    seed=arguments.seed,
    members=arguments.inputs,
  )
  groups = len(np.unique(rows.groups))
  print(
    f"{arguments.split}: {len(rows.frames):,} rows of {groups} groups of videos and people,"
    f" {arguments.folds} folds\n{as_text(table)}"
  )
  print(f"{_HOW[0]}: fitted to the labels that it is scored on; {_HOW[1]}: to other videos")
  print("chosen on all rows:")
  for task, own in settings.items():
    print(f"  {task}: {_chosen(own)}")
  if save:
    fitted_on = {
      "inputs": list(map(str, arguments.inputs)),
      "split": arguments.split,
      "rows": len(rows.frames),
      "groups": groups,
      "folds": arguments.folds,
      "scores": {", ".join(filter(None, row)): scores for row, scores in table.items()},
    }
    content = json.dumps(settings | {"fitted_on": fitted_on}, indent=1)
    try:
      records.store(save, content.encode())
    except OSError as e:
      raise ValueError(f"--save={save}: cannot be written ({e.strerror}); name another file") from e
    print(f"kept in {save}")


def _tasks(given: str | None, there: Sequence[str]) -> list[str]:
  asked = list(there) if given is None else given.split(",")
  if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(there):
    raise ValueError(
      f"--tasks={given or ''}: what has outputs and labels is {', '.join(there) or 'nothing'}"
    )
  return [task for task in there if task in asked]


if __name__ == "__main__":
  main()
