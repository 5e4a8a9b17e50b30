"""The gap between renders and photographs: trained on the one, scored on FER+'s real faces.

  python scripts/import_weights.py faceres-deep
  python -m affjax.data.prepare ferplus --source=FOLDER
  python -m affjax.main --config=configs/lsd.py          # row (i); again with other seeds
  python scripts/measure_gap.py --runs runs/lsd          # to choose by: FER+'s training images
  python scripts/measure_gap.py --runs runs/lsd --report # once: its validation images
  python scripts/measure_gap.py --renders natural        # other renders, by the training images

Rows, from the least to the most that is known of real faces; none has learnt from a real label:

  (i)   no real pixel in training: what `--runs` are, one a seed.
  (ii)  an encoder that has learnt from real faces who they are (`faceres-deep`), frozen, and
        logistic regression on renders.
  (iii) the same, then a mixture of Gaussians fitted to FER+'s training images without their labels.

What was chosen on labels of FER+'s training images: `SHARES` and every number below and in
`affjax/transfer.py`. Scores are means over the seeds; below them a 95 % interval over the images.
"""

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from affjax import augment, inference, metrics, transfer
from affjax.data import pipeline, prepare, records
from affjax.labels import EXPRESSION_SEVEN
from affjax.models import mobilenet, weights
from tfds_builders.synthetic_faces import knobs, synthetic_faces_dataset_builder

LSD7 = synthetic_faces_dataset_builder.Builder.builder_configs["lsd7"]
PEOPLE = dict(identities=(*LSD7.identities[:1], 8, 8))
# What each choice of `lsd7` is worth: the same without it. More people in the last one.
VARIANTS = {
  "no_faults": dict(PEOPLE, camera=knobs.Camera(rate=0, grey_rate=0, reduced_rate=0)),
  "grey_only": dict(PEOPLE, camera=knobs.Camera(rate=0, grey_rate=1, reduced_rate=0)),
  "template_view": dict(PEOPLE, view=knobs.View()),
  "nothing_before": dict(PEOPLE, occluders=knobs.Occluders()),
  "strong": dict(PEOPLE, labels=knobs.Labels("strong", prior=knobs.SEVEN)),
  "natural": dict(PEOPLE, labels=knobs.Labels("natural", prior=knobs.SEVEN)),
  "large": dict(identities=(12_500, 8, 8)),
}

# How often FER+'s training images show each of EXPRESSION_SEVEN, by the official rule.
SHARES = np.array([0.361, 0.083, 0.004, 0.020, 0.303, 0.124, 0.105])
# Renders count by a power of them: between macro F1, to which all classes are alike, and accuracy.
TEMPER = 0.5
# The map of 14 x 14 after block 11 of 13, averaged to 3 x 3. Later ones know less of the mouth, and
# cells tell it from the eyes.
ENCODER = dict(image_size=224, depth=11, grid=3, norm="none")
# A second view of each render, drawn anew for each seed.
VIEW = dict(
  flip_rate=0.5, scale=0.1, shift=0.03, brightness=0.3, contrast=0.5, cast=0.0, grey_rate=0.0,
  erase_rate=0.3, erase_area=0.15,
)  # fmt: skip
REAL_AXES = 64
RULES = ("official", "strict")
BATCH = 64
RESAMPLES = 1000
WANTS = {"expression": EXPRESSION_SEVEN}

Logits = Callable[[str], np.ndarray]  # of a split of FER+


class Features:
  """The frozen encoder's features of prepared images, made once and kept.

  Args:
    source: name or file of the encoder's weights.
    cache: folder where features are kept.
  """

  def __init__(self, source: str, cache: str) -> None:
    path = weights.find(source)
    arrays, centre = weights.read(path), weights.facts(path)["model"]["centre"]
    model = mobilenet.MobileNet(**ENCODER, centre=centre, rngs=nnx.Rngs(0))
    weights.fill(model, arrays)
    graph, state = nnx.split(model)
    self._cache = Path(cache).expanduser()
    self._digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = ENCODER["image_size"]

    @jax.jit
    def encode(images: jax.Array, key: jax.Array | None) -> jax.Array:
      if key is None:
        images = augment.preprocess(images, size)
      else:
        images = augment.augment(images, key, size, **VIEW)
      return nnx.merge(graph, state)(images).reshape(len(images), -1)

    self._encode = encode

  def __call__(self, build: Any, split: str, seed: int | None = None) -> np.ndarray:
    """[rows, features] of a split as it is, or of a random view of each image."""
    known = [records.summary(build)["fingerprint"], split, ENCODER, self._digest, seed]
    known += [VIEW] if seed is not None else []
    # The fingerprint is of keys and labels: renders with other knobs can have the same.
    known += [dict(build.info.metadata)["knobs"]] if "knobs" in (build.info.metadata or {}) else []
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    path = self._cache / f"{build.name}-{split}-{name}.npy"
    if not path.is_file():
      self._cache.mkdir(parents=True, exist_ok=True)
      parts = []
      for number, (images, rows) in enumerate(batches(build, split)):
        key = None if seed is None else jax.random.fold_in(jax.random.key(seed), number)
        parts.append(np.asarray(self._encode(images, key), np.float16)[:rows])
      np.save(path, np.concatenate(parts))
    return np.load(path).astype(np.float32)


def batches(build: Any, split: str) -> Iterator[tuple[np.ndarray, int]]:
  """Yields the images of a split, the last ones padded, and how many are there."""
  size = build.info.features["image"].shape[0]
  data = records.records(build, split, {}, size)
  order = pipeline.sequence(len(data), BATCH)
  for batch in tqdm(pipeline.batches(data, order), f"{build.name} {split}", len(order)):
    yield batch["image"], int((batch["index"] >= 0).sum())


def adapted_rows(
  features: Features,
  renders: Any,
  photographs: Any,
  *,
  seeds: int,
  limit: int | None = None,
  plain: bool = True,
) -> dict[str, list[Logits]]:
  """Rows (ii) and (iii), a classifier for each seed.

  Args:
    features: of images.
    renders: what is learnt from.
    photographs: FER+.
    seeds: how many classifiers a row has.
    limit: how many renders are learnt from; None: all.
    plain: whether from each render as it is too, or from its random view alone.
  """
  labels, _ = records.labels(renders, "train", WANTS)
  units = intensities(renders, "train")
  own = slice(limit)
  people = records.label_table(renders, "train")["person"][own]
  real = np.concatenate([features(photographs, split) for split in ("train", "dev")])
  axes = transfer.Axes.of(real, REAL_AXES)
  rows: dict[str, list[Logits]] = {"ii": [], "iii": []}
  for seed in range(seeds):
    drawn = draw_people(people, seed)
    views = [features(renders, "train", s)[own] for s in [*[None] * plain, seed]]
    learnt = transfer.learn(
      np.concatenate([view[drawn] for view in views]),
      np.tile(labels["expression"][own][drawn], (len(views), 1)),
      np.tile(units[own][drawn], (len(views), 1)),
      SHARES**TEMPER,
    )
    adapted = transfer.adapt(learnt, real, axes, SHARES)
    for row, model in (("ii", learnt), ("iii", adapted)):
      rows[row].append(lambda split, model=model: model(features(photographs, split)))
  return rows


def intensities(build: Any, split: str) -> np.ndarray:
  """[rows, units] how strong each unit of a split's renders is on its stronger side."""
  found = records.shards(build, split)
  read = lambda row: tf_example_pb2.Example.FromString(found.read([row])[0]).features.feature
  values = [read(row)["unit_intensity"].float_list.value for row in range(len(found))]
  return np.array(values, np.float32).reshape(len(values), -1, 2).max(2)


def draw_people(people: np.ndarray, seed: int) -> np.ndarray:
  """Rows of as many people as there are, drawn with replacement: another sample of renders."""
  names, number = np.unique(people, return_inverse=True)
  drawn = np.random.default_rng(seed).integers(len(names), size=len(names))
  order = np.argsort(number, kind="stable")
  starts = np.searchsorted(number[order], np.arange(len(names) + 1))
  return np.concatenate([order[starts[i] : starts[i + 1]] for i in drawn])


def run_rows(runs: Sequence[str], photographs: Any) -> list[Logits]:
  """Row (i): trained runs, their answers with the prior of what renders count by."""

  def answers(run: str) -> Logits:
    predictor = inference.load(run)
    known = list(predictor.config["labels"]["expression"])
    columns = [known.index(name) for name in EXPRESSION_SEVEN]

    def logits(split: str) -> np.ndarray:
      parts = [
        predictor.outputs(images)["expression"][:rows]
        for images, rows in batches(photographs, split)
      ]
      return np.concatenate(parts)[:, columns] + TEMPER * np.log(SHARES)

    return logits

  return [answers(run) for run in runs]


def score(
  logits: list[np.ndarray], labels: np.ndarray, mask: np.ndarray, classes: slice
) -> dict[str, float]:
  """Macro F1 and accuracy, means over the seeds, with an interval over the images, and the floor.

  Args:
    logits: of each seed [rows, classes].
    labels: [rows, classes] votes.
    mask: [rows] which rows have a hard label.
    classes: which are scored; rows of others do not count.
  """
  target = labels.argmax(1)
  known = np.arange(labels.shape[1])[classes]
  kept = np.flatnonzero((mask > 0) & np.isin(target, known))
  target = target[kept] - known[0]
  answers = [x[kept][:, classes].argmax(1) for x in logits]
  cells = [target * len(known) + answer for answer in answers]

  def mean(rows: np.ndarray) -> tuple[float, float]:
    counts = [np.bincount(cell[rows], minlength=len(known) ** 2) for cell in cells]
    found = [metrics.Confusion(c.reshape(len(known), -1)).compute() for c in counts]
    return tuple(float(np.mean([f[name] for f in found])) for name in ("f1", "accuracy"))

  f1, accuracy = mean(np.arange(len(kept)))
  rng = np.random.default_rng(0)
  drawn = [mean(rng.integers(len(kept), size=len(kept))) for _ in range(RESAMPLES)]
  low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
  floor = metrics.Confusion(np.diag(np.bincount(target, minlength=len(known)))).floor()
  return {
    "images": len(kept), "f1": f1, "f1_low": low[0], "f1_high": high[0], "accuracy": accuracy,
    "accuracy_low": low[1], "accuracy_high": high[1],
    "floor_f1": float(floor["f1"]), "floor_accuracy": float(floor["accuracy"]),
  }  # fmt: skip


def table(rows: dict[str, list[Logits]], photographs: Any, splits: tuple[str, ...]) -> str:
  """All rows' scores as text: seven and six classes, both rules."""
  answers = {
    row: [np.concatenate([logits(split) for split in splits]) for logits in seeds]
    for row, seeds in rows.items()
    if seeds
  }
  found = [records.labels(photographs, split, WANTS) for split in splits]
  labels = np.concatenate([label["expression"] for label, _ in found])
  lines = []
  for title, classes in (("seven", slice(0, 7)), ("six", slice(1, 7))):
    for rule in RULES:
      mask = np.concatenate([masks[f"expression_{rule}"] for _, masks in found])
      scores = {row: score(seeds, labels, mask, classes) for row, seeds in answers.items()}
      some = next(iter(scores.values()))
      lines.append(f"{title} classes, {rule} rule, {some['images']} images of {'+'.join(splits)}")
      lines.append(f"  floor  F1 {some['floor_f1']:.3f}  accuracy {some['floor_accuracy']:.3f}")
      for row, s in scores.items():
        lines.append(
          f"  ({row})".ljust(9)
          + f"F1 {s['f1']:.3f} [{s['f1_low']:.3f} {s['f1_high']:.3f}]  accuracy"
          f" {s['accuracy']:.3f} [{s['accuracy_low']:.3f} {s['accuracy_high']:.3f}]"
          f"  {len(answers[row])} seed(s)"
        )
  return "\n".join(lines)


def variant(name: str, data_dir: str | None) -> Any:
  """The builder of `lsd7` with something else in it."""
  setting = dict(VARIANTS[name])
  people = setting.pop("identities")
  config = synthetic_faces_dataset_builder.Config(
    name=f"lsd7_{name}", identities=people, setting=dataclasses.replace(LSD7.setting, **setting)
  )
  return synthetic_faces_dataset_builder.Builder(data_dir=data_dir, config=config)


def main() -> None:
  """Opens the data, makes the rows, prints the table."""
  options = parse()
  logging.set_verbosity(logging.ERROR)  # TFDS warns of configs that are not its builder's own
  if options.renders in VARIANTS:
    renders = variant(options.renders, options.data_dir)
  else:
    renders = records.builder("synthetic_faces", options.renders, options.data_dir)
  photographs = records.builder("ferplus", "", options.data_dir)
  for build in (renders, photographs):
    prepare.prepare(build)
  features = Features(options.weights, options.cache)
  rows = {"i": run_rows(options.runs, photographs)}
  sample = dict(seeds=options.seeds, limit=options.limit, plain=options.plain)
  rows |= adapted_rows(features, renders, photographs, **sample)
  print(table(rows, photographs, ("validation",) if options.report else ("train", "dev")))


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add(
    "--renders",
    default="lsd7",
    metavar="NAME",
    help=f"a config of synthetic_faces, or lsd7 but for one thing: {', '.join(VARIANTS)}",
  )
  add("--limit", type=int, help="how many renders are learnt from; all unless given")
  add(
    "--plain",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="learn from each render as it is beside its random view",
  )
  add("--runs", nargs="*", default=[], help="folders of runs of configs/lsd.py: row (i)")
  add("--seeds", type=int, default=3, help="of rows (ii) and (iii)")
  add("--report", action="store_true", help="score FER+'s validation images: once, at the end")
  add("--data_dir", help="where prepared data lives; TFDS's folder unless given")
  add(
    "--weights",
    default="faceres-deep",
    help="name or file of what scripts/import_weights.py imported",
  )
  add("--cache", default="~/.cache/affjax/gap", help="where features are kept")
  return parser.parse_args()


if __name__ == "__main__":
  main()
