"""Pictures of a run: `report.html`, which every run draws at its end, and those beside it.

  python -m affjax.report --workdir=runs/x
  python -m affjax.report --workdir=runs/x --which=latest --splits=test

scores a checkpoint again and draws the page anew. It is one file that needs neither a network nor
scripts. Scores are those of all rows; what is drawn of single rows is of `evaluate.ROWS` of them at
most, evenly spaced. Faces are shown of `synthetic_faces` alone, whose people do not exist.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import tensorflow_datasets as tfds
from scipy import special

from affjax import (
  checkpoints,
  compiled,
  evaluate,
  experiment,
  figures,
  inference,
  monitor,
  scored,
  workdir,
)
from affjax.data import page, paired, records, selection

REPORT = "report.html"
WEIGHTS = "weights.png"
RENDERED = "synthetic_faces"  # the data set of which faces may be shown
FACES = 64  # over which attention is averaged
PAINTED = 8  # faces that are shown with what a model paints of them
LEAST = 50  # rows of a group that gets a score
POINTS = 500  # of a curve
# What drawing may end with, for which no run is to be lost.
FAULTS = (
  ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, OSError, RuntimeError,
  TypeError, ValueError,
)  # fmt: skip
_TASKS = {"va": "valence and arousal", "expression": "expression", "au": "action units"}


def sheet(
  images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], columns: int = 8
) -> np.ndarray:
  """Images with their captions below, on one page.

  Args:
    images: [height, width, 3] uint8 RGB each.
    captions: lines for each image.
    columns: images in a row.

  Returns:
    [height, width, 3] uint8 RGB.
  """
  cell, line = 144, 13
  below = line * max(map(len, captions)) + 8
  rows = -(-len(images) // columns)
  page = np.full((rows * (cell + below), columns * (cell + 6), 3), 255, np.uint8)
  for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
    y, x = (i // columns) * (cell + below), (i % columns) * (cell + 6)
    page[y : y + cell, x : x + cell] = cv2.resize(
      image, (cell, cell), interpolation=cv2.INTER_CUBIC
    )
    for j, text in enumerate(lines):
      at = (x + 1, y + cell + line * (j + 1) - 2)
      cv2.putText(page, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.36, (0, 0, 0), 1, cv2.LINE_AA)
  return page


def save_batch(
  path: Path,
  images: np.ndarray,
  labels: Mapping[str, Any],
  mask: Mapping[str, Any],
  names: Mapping[str, Sequence[str]],
  limit: int = 64,
) -> None:
  """Writes a PNG of what the network sees: augmented images with the labels they are trained on.

  Args:
    path: of the file.
    images: [batch, height, width, 3] float32 in [-1, 1]; of clips [batch, time, height, width, 3],
      of which each line is one: frames from its first to its last.
    labels: task -> [batch, ...], of clips [batch, time, ...].
    mask: task -> likewise.
    names: task -> names of its labels.
    limit: images shown at most.
  """
  columns = 8
  if images.ndim == 5:
    columns = min(columns, images.shape[1])
    shown = np.linspace(0, images.shape[1] - 1, columns).round().astype(int)
    frames = lambda x: np.asarray(x)[:limit, shown].reshape(-1, *np.shape(x)[2:])
    labels, mask = ({task: frames(tree[task]) for task in names} for tree in (labels, mask))
    images = frames(images)
  count = min(limit, len(images))
  row = lambda tree, i: {task: np.asarray(tree[task])[i] for task in names}
  captions = [page.caption(row(labels, i), row(mask, i), names) for i in range(count)]
  cv2.imwrite(str(path), sheet(_pixels(images[:count]), captions, columns)[..., ::-1])


def _pixels(images: Any) -> np.ndarray:
  """Floats in [-1, 1] -> uint8."""
  return np.clip((np.asarray(images) + 1) * 127.5, 0, 255).astype(np.uint8)


def save_weights(path: Path, log: Path) -> None:
  """Writes a PNG of what was learned about the tasks' uncertainty, against the step.

  The factor that each task's loss (or each dimension's) had, and where the model predicts standard
  deviations their means. Without anything of either, no file is written.

  Args:
    path: of the picture.
    log: of a run, `metrics.jsonl`.
  """
  if charts := list(_weights(workdir.entries(log))):
    drawn = [np.frombuffer(figures.png(chart), np.uint8) for chart in charts]
    pages = [cv2.imdecode(chart, cv2.IMREAD_COLOR) for chart in drawn]
    cv2.imwrite(str(path), np.concatenate(pages))


def _weights(log: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
  """Figures of the tasks' weights and of predicted deviations, as far as they were learned."""
  for kind, title in (
    ("weight", "weight of each loss"),
    ("sigma", "predicted standard deviation, mean of the batch"),
  ):
    found = _curves(log, kind)
    found = {name: c for name, c in found.items() if (c[1] != 1).any()}  # 1: not learned
    if found:
      yield figures.curves(found, title)


def _curves(
  log: Sequence[Mapping[str, Any]], kind: str, of: str = "train"
) -> dict[str, figures.Curve]:
  """Name -> curve of the numbers `kind/name` in a log; 0 is no value: there were no labels.

  Where dimensions have curves of their own, their task has none.
  """
  prefix = f"{kind}/" if kind else ""
  points: dict[str, list[tuple[float, float]]] = {}
  for entry in log:
    if entry.get("kind") == of and isinstance(entry.get("step"), int):
      for name, value in entry.items():
        if name.startswith(prefix) and isinstance(value, int | float) and value:
          points.setdefault(name.removeprefix(prefix), []).append((entry["step"], value))
  whole = {name.rpartition("/")[0] for name in points} if kind else set()
  known = {n: np.array(xy, np.float64) for n, xy in points.items() if n not in whole}
  known = {name: xy[np.isfinite(xy).all(1)] for name, xy in known.items()}
  return {name: (xy[:, 0], xy[:, 1]) for name, xy in known.items() if len(xy)}


# report.html.


def attempt(
  where: Path,
  config: Mapping[str, Any],
  data: experiment.Data,
  result: Mapping[str, Any],
  rows: Mapping[str, evaluate.Outputs],
) -> None:
  """Draws what is drawn at the end of a run; where that fails, says so and leaves it."""
  try:
    save_weights(where / WEIGHTS, where / monitor.LOG)
    print(f"\nreport {write(where, config, data, result, rows)}", flush=True)
  except FAULTS as e:
    why = " ".join(f"{type(e).__name__}: {e}".split())
    print(
      f"warning: no report could be drawn ({why}); the scores are whole. To try again:"
      f" python -m affjax.report --workdir={where}",
      file=sys.stderr,
      flush=True,
    )


def write(
  where: Path,
  config: Mapping[str, Any],
  data: experiment.Data,
  result: Mapping[str, Any],
  rows: Mapping[str, evaluate.Outputs],
) -> Path:
  """Writes `report.html` of a run.

  Args:
    where: the run's folder.
    config: of the run.
    data: of the run.
    result: what `evaluate.score` returned.
    rows: what it filled.

  Returns:
    The page's path.

  Raises:
    ValueError: the run's log cannot be read, or the page not be written.
  """
  log = workdir.entries(where / monitor.LOG)
  splits = [scored.Scored.of(name, data, result, rows[name]) for name in result["scores"]]
  sections = {
    "Scores": _scores(splits),
    "Run": _run(where, config, data, result, log),
    "Learning": _learning(log),
  }
  if data.labels:
    sections |= {s.name: _split(s, data, list(result["scores"])) for s in splits}
    sections["Attention"] = _attention(where, config, data, result)
  else:
    sections["Reconstruction"] = _reconstruction(where, config, data, result)
  lead = page.paragraph(
    f"{data.build.name}, checkpoint of step {result['step']:,},"
    f" {'averaged' if result['weights'] == 'ema' else 'raw'} weights"
  )
  page.write(where / REPORT, page.document(where.resolve().name, lead, sections))
  return where / REPORT


def _chart(figure: Any, alt: str, caption: str = "") -> str:
  return page.picture(figures.svg(figure), alt, caption)


def _single(names: Sequence[str]) -> dict[str, list[str]]:
  """Score -> those of single labels that it is the mean of: `au/f1` -> `au/f1/AU1`, ..."""
  parents: dict[str, list[str]] = {}
  for name in names:
    if (parent := name.rpartition("/")[0]) in names:
      parents.setdefault(parent, []).append(name)
  return parents


def _scores(splits: Sequence[scored.Scored]) -> str:
  """A table for each split: the main scores beside what they are read by."""
  parts = [
    page.paragraph(
      "A score's floor is that of the best constant answer; the probe is linear models of tiny grey"
      " images; the ceiling, where there is one, is that of the best possible system.",
      dim=True,
    )
  ]
  for split in splits:
    parts += [page.heading(split.name, f"scores-{page.anchor(split.name)}")]
    single = {n for names in _single(list(split.columns["score"])).values() for n in names}
    parts.append(_score_table(split, [n for n in split.columns["score"] if n not in single]))
  return "".join(parts)


def _score_table(split: scored.Scored, names: Sequence[str]) -> str:
  columns = {kind: values for kind, values in split.columns.items() if set(values) & set(names)}
  lines = [[name, *(values.get(name) for values in columns.values())] for name in names]
  return page.table(["", *columns], lines)


def _run(
  where: Path,
  config: Mapping[str, Any],
  data: experiment.Data,
  result: Mapping[str, Any],
  log: Sequence[Mapping[str, Any]],
) -> str:
  """What the run was: command, code, machine, data, config."""
  starts = workdir.entries(where / workdir.STARTS)
  last = starts[-1] if starts else {}
  listed = lambda name: last.get(name) if isinstance(last.get(name), list) else []
  versions = last.get("versions") if isinstance(last.get("versions"), dict) else {}
  seconds = [e["seconds"] for e in log if e.get("kind") == "time" and "seconds" in e]
  beside = paired.Auxiliary.of(config)
  facts = {
    "folder": where.resolve(),
    "command": " ".join(["python", *map(str, listed("command")[1:])]) if starts else "",
    "started": f"{last.get('time', '')}, {len(starts)} time(s) in all" if starts else "",
    "trained for": f"{sum(seconds) / 60:.1f} minutes" if seconds else "",
    "devices": ", ".join(map(str, listed("devices"))),
    "code": last.get("git") or "",
    "Python": last.get("python", ""),
    "packages": ", ".join(f"{name} {version}" for name, version in versions.items()),
    "data": f"{data.build.name} {data.build.version} in {data.build.data_dir}, fingerprint"
    f" {data.summary['fingerprint'][:12]}",
    "beside it": f"{beside.name} {beside.train}, {beside.share:.0%} of each batch" * bool(beside),
    "skipped updates": len(result.get("skipped_updates", ())) or "",
    "unreadable records": sum(x["count"] for x in result.get("unreadable", {}).values()) or "",
  }
  known = page.table(("", ""), [[name, str(fact)] for name, fact in facts.items() if fact])
  return (
    known
    + _labelled(data, list(result["scores"]))
    + page.details("config", f"<pre>{page.text(json.dumps(config, indent=1))}</pre>")
  )


def _labelled(data: experiment.Data, splits: Sequence[str]) -> str:
  """How many images of each split have labels of each task, as they are seen."""
  lines = [
    [f"{name} ({data.view(name)})" if data.view(name) else name, len(data.table(name)["key"])]
    + [data.labelled(name, task) for task in data.labels]
    for name in dict.fromkeys((data.train_split, *splits))
  ]
  return page.table(["split", "images", *(_TASKS.get(t, t) for t in data.labels)], lines)


def _learning(log: Sequence[Mapping[str, Any]]) -> str:
  """Curves over the steps."""
  kinds = dict.fromkeys(entry.get("kind") for entry in log)
  splits = [k for k in kinds if isinstance(k, str) and k not in monitor.OF_A_STEP]
  single = lambda found: {n for names in _single(list(found)).values() for n in names}
  charts = []

  def add(found: Mapping[str, figures.Curve], title: str, log: bool | None = None) -> None:
    thin = lambda x: x[:: -(-len(x) // POINTS)]
    if found := {name: (thin(x), thin(y)) for name, (x, y) in found.items()}:
      last = ", ".join(f"{name} {y[-1]:.3g} at step {x[-1]:.0f}" for name, (x, y) in found.items())
      charts.append(_chart(figures.curves(found, title, log=log), f"{title}: {last}"))

  every = _curves(log, "")
  # The whole comes last, so that tasks have the colours that they have among the weights.
  add(_curves(log, "loss") | ({"in all": every["loss"]} if "loss" in every else {}), "loss")
  for split in splits:
    found = _curves(log, "", split)
    hidden = single(found) | {"step"} | {n for n in found if n.endswith("cross_entropy")}
    add({n: c for n, c in found.items() if n not in hidden}, f"scores, {split}", log=False)
  add({"rate": every["learning_rate"]} if "learning_rate" in every else {}, "learning rate", False)
  charts += [_chart(figure, figure.axes[0].get_title("left")) for figure in _weights(log)]
  if not charts:
    return page.paragraph("There is no log of the run.", dim=True)
  return page.grid(charts)


def _split(split: scored.Scored, data: experiment.Data, names: Sequence[str]) -> str:
  """All that is drawn of a split, one of those that have `names`."""
  notes = [f"labels are seen with {data.view(split.name)}"] * bool(data.view(split.name))
  if left_out := split.scoring.left_out:
    notes.append(f"not in the data set, so not scored: {', '.join(left_out)}")
  if missing := [name for task, name in _TASKS.items() if not split.labelled(task)]:
    notes.append(f"without labels or outputs, so not drawn: {', '.join(missing)}")
  if split.broken:
    notes.append(
      f"the model's outputs are not finite for {split.broken:,} rows, which are left out"
    )
  if (shown := len(split.index)) < split.total:
    notes.append(f"charts of single rows are of {shown:,} of {split.total:,} rows, evenly spaced")
  parts = [page.paragraph(f"{note[0].upper()}{note[1:]}.", dim=True) for note in notes]
  every = page.details("every score", _score_table(split, list(split.columns["score"])))
  if (twin := split.name + experiment.NO_VIEW) in names:
    same = page.paragraph(f"The same images with every label, and all charts of them: {twin}.")
    return "".join([*parts, same, page.grid(_labels_scores(split)), every])
  if not shown:
    return "".join([*parts, every])
  place = page.anchor(split.name)
  charts = [*_labels_scores(split), *_expression(split), *_va(split), *_au(split)]
  parts += [page.grid(charts), every]
  parts += [page.heading("Groups", f"{place}-groups"), _groups(split, data)]
  parts += [page.heading("Worst errors", f"{place}-errors"), _errors(split, data)]
  return "".join(parts)


def _labels_scores(split: scored.Scored) -> Iterator[str]:
  """Bars of the scores of single labels."""
  for parent, names in _single(list(split.columns["score"])).items():
    shown = {parent: "mean", **{name: name.rpartition("/")[2] for name in names}}
    of = {
      kind: {
        label: values[name]
        for name, label in shown.items()
        if math.isfinite(values.get(name, math.nan))
      }
      for kind, values in split.columns.items()
    }
    if not of["score"]:
      continue
    told = ", ".join(f"{name} {value:.2f}" for name, value in of["score"].items())
    yield _chart(figures.bars(of, parent), f"{parent}: {told}")


def _expression(split: scored.Scored) -> Iterator[str]:
  for rule, rows in split.rules.items():
    if not rows.any():
      continue
    counts, names = scored.confusion(split, rows), split.names("expression")
    right = counts.trace() / counts.sum()
    yield _chart(
      figures.confusion(counts, names, rule),
      f"Confusion of {rule}: {right:.0%} of {counts.sum():,} rows are on the diagonal",
    )
    chosen = split.probability[rows]
    happened = chosen.argmax(1) == split.annotated[rows]
    figure = figures.reliability(chosen.max(1), happened, rule, "the expression that was chosen")
    yield _chart(figure, f"Calibration of {rule}: {figure.axes[0].get_title('left')}")


def _va(split: scored.Scored) -> Iterator[str]:
  if split.labelled("va") and len(split.names("va")) == 2:
    given, label, mask = split.taken("va")
    rows = mask.all(1)
    if rows.any():
      ccc = [split.columns["score"][f"va/ccc/{name}"] for name in split.names("va")]
      yield _chart(
        figures.densities(label[rows], given[rows], ccc),
        f"Densities of annotated and predicted valence and arousal; CCC {ccc[0]:.3f}, {ccc[1]:.3f}",
      )


def _au(split: scored.Scored) -> Iterator[str]:
  if split.labelled("au"):
    logits, label, mask = split.taken("au")
    probability, known = special.expit(logits.astype(np.float64)), mask > 0
    figure = figures.reliability(
      probability[known], label[known] > 0, "action units together", "a unit"
    )
    yield _chart(figure, f"Calibration of the units: {figure.axes[0].get_title('left')}")
    # Of a unit with labels alone.
    error = {
      name: figures.calibration(probability[known[:, i], i], label[known[:, i], i] > 0)[-1]
      for i, name in enumerate(split.names("au"))
      if known[:, i].any()
    }
    told = ", ".join(f"{name} {value:.3f}" for name, value in error.items())
    yield _chart(
      figures.bars({"score": error}, "ECE of each unit, smaller is better"),
      f"Expected calibration error of each unit: {told}",
    )


# Groups.


def _groups(split: scored.Scored, data: experiment.Data) -> str:
  """Scores of groups of rows: of what the renderer knows, else the spread over people."""
  if data.build.name != RENDERED:
    return _people(split, data)
  overall = scored.group_scores(split, np.ones(len(split.index), bool))
  found: dict[str, dict[str, dict[str, tuple[float, int]]]] = {name: {} for name in overall}
  for by, (groups, of_row) in _attributes(split, data).items():
    for number, group in enumerate(groups):
      rows = of_row == number
      if rows.sum() >= LEAST:
        for name, score in scored.group_scores(split, rows).items():
          found[name].setdefault(by, {})[group] = (score, int(rows.sum()))
  charts = []
  for name, of in found.items():
    if several := {by: groups for by, groups in of.items() if len(groups) > 1}:
      each = [f"{g} {score:.2f}" for groups in several.values() for g, (score, _) in groups.items()]
      figure = figures.groups(several, overall[name], name)
      charts.append(_chart(figure, f"{name}: all {overall[name]:.2f}, {', '.join(each)}"))
  if not charts:
    return page.paragraph(f"No two groups have {LEAST} rows each.", dim=True)
  why = (
    "In brackets the rows. Sex and ancestry are names of the mesh's morph targets, not of people."
  )
  return page.paragraph(why, dim=True) + page.grid(charts)


def _attributes(
  split: scored.Scored, data: experiment.Data
) -> dict[str, tuple[Sequence[str], np.ndarray]]:
  """What of a rendered face -> names of groups, and [rows] the number of each row's group."""
  from tfds_builders.synthetic_faces import camera, person

  names = ("age_group", "sex", "ancestry", "head", "occluder", "spoof", "camera", "borderline")
  found = _fields(split, data, names, split.index)
  faults = dict(zip(camera.FAULTS, found["camera"].T, strict=True))
  sharp = np.minimum(camera.FAULTLESS.resolution / (1 + faults["blur"]), faults["resolution"])
  return {
    "age": (person.AGES, found["age_group"]),
    "sex": (person.SEXES, found["sex"]),
    "ancestry": (person.ANCESTRIES, found["ancestry"]),
    "head turned": (
      ("below 15 degrees", "15 to 30 degrees", "over 30 degrees"),
      np.digitize(np.abs(found["head"][:, 0]), (15, 30)),
    ),
    "pixels resolved": (
      ("below 52", "52 to 90", "over 90"),
      np.digitize(sharp, (52, 90)),
    ),
    "before the face": _words(found["occluder"]),
    "only shown on": _words(found["spoof"]),
    "a unit's strength": (("clear", "on the border"), found["borderline"].astype(int)),
  }


def _words(column: np.ndarray) -> tuple[Sequence[str], np.ndarray]:
  """The groups that texts make, and the group of each."""
  names, of_row = np.unique(column, return_inverse=True)
  return [name.decode() or "nothing" for name in names], of_row


def _fields(
  split: scored.Scored, data: experiment.Data, names: Sequence[str], rows: np.ndarray
) -> dict[str, np.ndarray]:
  """Fields of the records of rows of a split: name -> [rows, ...]."""
  found, taken = _files(split.name, data)
  features = tfds.features.FeaturesDict({name: data.build.info.features[name] for name in names})
  read = [features.deserialize_example_np(found.record(int(taken[row]))) for row in rows]
  return {name: np.array([one[name] for one in read]) for name in names}


def _files(split: str, data: experiment.Data) -> tuple[records.Shards, np.ndarray]:
  """The files of a split, and the row in them of each of its rows."""
  name = split.removesuffix(experiment.NO_VIEW)
  parts = [records.shards(data.build, s) for s in selection.Selection.parse(name).splits]
  found, taken = records.joined(parts), data.records(split).images.taken
  return found, np.arange(len(found)) if taken is None else taken


def _people(split: scored.Scored, data: experiment.Data) -> str:
  """How scores are spread over people, or over videos where the data set says no more."""
  table = {name: column[split.index] for name, column in data.table(split.name).items()}
  who = next((n for n in ("person", "video") if n in table and (table[n] != b"").any()), None)
  if who is None:
    return page.paragraph(
      "The data set does not say who or which video its images are of.", dim=True
    )
  of_row = np.unique(table[who], return_inverse=True)[1]
  charts = []
  for name, (values, known) in scored.row_scores(split).items():
    rows = np.bincount(of_row[known], minlength=of_row.max() + 1)
    total = np.bincount(of_row[known], values[known], of_row.max() + 1)
    means = (total / np.maximum(rows, 1))[rows > 0]
    figure = figures.spread(means, f"{len(means):,} {who}s", name)
    charts.append(_chart(figure, " ".join(figure.axes[0].get_title("left").split()) + f", {name}"))
  return page.grid(charts)


# Errors.


def _errors(split: scored.Scored, data: experiment.Data) -> str:
  """The images that the model was most wrong about, of people that do not exist."""
  if data.build.name != RENDERED:
    return page.paragraph(f"Images are shown of {RENDERED} alone, never of real people.", dim=True)
  parts = []
  for task, (rows, captions) in scored.worst(split).items():
    images = _images(split, data, rows)
    parts.append(page.paragraph(_TASKS[task]))
    parts.append(
      page.grid(
        [
          page.picture(image, f"A rendered face. {' '.join(caption.split())}", caption, "face")
          for image, caption in zip(images, captions, strict=True)
        ],
        "7.5rem",
      )
    )
  return "".join(parts) or page.paragraph("There are none.", dim=True)


def _images(split: scored.Scored, data: experiment.Data, rows: np.ndarray) -> list[bytes]:
  """The encoded images of rows, as they are in the records."""
  found, taken = _files(split.name, data)
  return [records.image_of(found.record(int(taken[row]))) for row in split.index[rows]]


# What a model does with faces.


def _undrawn(where: Path, data: experiment.Data) -> str:
  """Why nothing is drawn that shows faces, or a mean of them; "": it can be."""
  if data.build.name != RENDERED:
    return page.paragraph(f"It is drawn of {RENDERED} alone, never of real people.", dim=True)
  if jax.process_count() > 1:
    again = f"python -m affjax.report --workdir={where}"
    return page.paragraph(f"It is not drawn by several processes: {again} draws it.", dim=True)
  return ""


def _faces(data: experiment.Data, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows that lie evenly in the split to choose by, and their images."""
  opened = data.records(data.select)
  rows = np.unique(np.linspace(0, len(opened) - 1, count).astype(int))
  return rows, opened.images(rows)["image"]


def _attention(
  where: Path, config: Mapping[str, Any], data: experiment.Data, result: Mapping[str, Any]
) -> str:
  """Where the task tokens look, over the mean of some faces of the split to choose by."""
  if why := _undrawn(where, data):
    return why
  _, images = _faces(data, FACES)
  try:
    found = inference.load(where, str(result["step"])).attention(images)
  except ValueError as e:
    return page.paragraph(f"It cannot be drawn: {e}.", dim=True)
  looks = found.image[-1].mean((0, 1))
  face = images.astype(np.float64).mean((0, 3)) / 255
  title = f"last layer, mean of its heads and of {len(images)} faces"
  maps = dict(zip(found.names, looks, strict=True))
  told = ", ".join(f"{name} {at.max() * at.size / at.sum():.1f} times" for name, at in maps.items())
  words = (
    "The thin line is where a token looks twice, the thick one where it looks four times as much as"
    " if its attention were spread evenly; beside each name the most that a patch has."
  )
  alt = f"Attention of the task tokens over a mean face; the most of a patch: {told}"
  drawn = page.picture(figures.png(figures.attention(face, maps, title)), alt)
  return page.paragraph(words, dim=True) + page.grid([drawn])


def _reconstruction(
  where: Path, config: Mapping[str, Any], data: experiment.Data, result: Mapping[str, Any]
) -> str:
  """Faces of the split to choose by, what was shown of them, and what was painted."""
  if why := _undrawn(where, data):
    return why
  rows, images = _faces(data, PAINTED)
  state, procedure, _ = inference.restored(config, where, str(result["step"]), result["weights"])
  seen, painted = jax.jit(procedure.painted)(*state, images, rows)
  shown = [*images, *_pixels(seen), *_pixels(painted)]
  named = [[name] for name in ("image", "seen", "painted") for _ in rows]
  encoded = cv2.imencode(".png", sheet(shown, named, len(rows))[..., ::-1])[1].tobytes()
  words = "Where patches are normalised the model paints what is within them: the mean and the"
  words += " contrast of each are the image's."
  alt = f"{len(rows)} rendered faces, the patches of them that were seen, and the faces painted"
  return page.paragraph(words, dim=True) + page.picture(encoded, alt)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.report",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, metavar="RUN", help="folder of a run")
  add("--which", default="best", metavar="STEP", help="best (default), latest, or a step")
  add("--splits", default="", metavar="A,B", help="default: those that the run scores")
  add("--data_dir", metavar="FOLDER", help="where prepared data lives")
  options = parser.parse_args(argv)
  compiled.keep()
  checkpoints.quiet()
  try:
    print(f"\n{_again(options)}")
  except ValueError as e:
    sys.exit(f"error: {' '.join(str(e).split())}")


def _again(options: argparse.Namespace) -> Path:
  """Scores a checkpoint and draws it."""
  where = Path(options.workdir)
  config = workdir.read_config(where)
  procedure = inference.open_procedure(config, where / workdir.CONFIG)
  mesh, _ = experiment.open_mesh(config)
  data, rows = experiment.Data(config, options.data_dir), {}
  splits = tuple(filter(None, options.splits.split(",")))
  result = evaluate.score(
    config, where, data, procedure, mesh, splits=splits, which=options.which, output=None, rows=rows
  )
  return write(where, config, data, result, rows)


if __name__ == "__main__":
  main()
