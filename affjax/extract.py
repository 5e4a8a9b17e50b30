"""Outputs and features of a checkpoint for every row of a data set, to files.

  python -m affjax.extract --checkpoint=runs/x --output=features/x
  python -m affjax.extract --checkpoint=runs/x --data=aff_wild2/expression --output=features/x

For `affjax.calibrate`, for models that learn from features in place of images
(`--config=configs/temporal.py:features=features/x`), and for whatever else reads NumPy's files:

  features.json  of which run, step and data set; names of the labels
  SPLIT.npz      key; person, video, frame where the data set has them; outputs/TASK (va: values,
                 else logits); labels/TASK and mask/TASK: [rows, ...]
  SPLIT.npy      [rows, width] float32: see `affjax.models.affect.AffectModel.features`

Rows are all of a split, in its order; labels are as the data set has them, in the run's terms.
"""

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from affjax import checkpoints, compiled, evaluate, experiment, inference, sharding, workdir
from affjax.data import clips, features, pipeline, prepare, records, selection

BATCH = 256  # images that are read at a time


def extract(
  where: Path,
  output: Path,
  *,
  data_set: str = "",
  splits: Sequence[str] = (),
  data_dir: str | None = None,
  which: str = "best",
  weights: str = "ema",
  vectors: bool = True,
) -> dict[str, Any]:
  """Writes outputs and features of a run's checkpoint.

  Args:
    where: the run's folder.
    output: folder that is written to. Splits that are there of the same checkpoint stay.
    data_set: NAME or NAME/CONFIG; empty: the run's own.
    splits: default: all that the data set has.
    data_dir: where prepared data lives; None: TFDS's default place.
    which: "best" by the run's metric, "latest", or a step.
    weights: "ema" (the moving average, where one is kept) or "raw".
    vectors: whether to write features, too.

  Returns:
    What `features.json` holds.

  Raises:
    ValueError: no such run, checkpoint, data set or split; or the folder holds what is of another.
  """
  config = workdir.read_config(where)
  inference.check_outputs(config, where)
  procedure = inference.open_procedure(config, where / workdir.CONFIG)
  data = _open(config, data_set, splits, data_dir)
  step = checkpoints.pick(where / workdir.CHECKPOINTS, which)
  facts = _facts(data, where, step, weights)
  known = _known(output, facts)
  mesh, _ = experiment.open_mesh(config)
  saved = checkpoints.Checkpoints(where / workdir.CHECKPOINTS, read_only=True)
  state, _ = saved.restore(step, experiment.abstract_state(procedure, mesh))
  saved.close()
  params = state.averaged if weights == "ema" else state.params
  forward = jax.jit(procedure.features if vectors else procedure.predict)
  with records.storing(output, "what is extracted"):
    output.mkdir(parents=True, exist_ok=True)
    for split in (data.train_split, *data.report):
      run = lambda *inputs: forward(params, state.model_state, *inputs)
      outputs = _outputs(run, data, split, mesh)
      width = _write(output, split, data, outputs)
      known["splits"][split] = len(data.table(split)["key"])
      known["width"] = width
      records.store(output / features.DESCRIBED, json.dumps(known, indent=1).encode())
  return known


def _open(
  config: Mapping[str, Any], data_set: str, splits: Sequence[str], data_dir: str | None
) -> experiment.Data:
  """All splits of the data set, or those that are named, their labels as they are."""
  section = {**config["data"], "view": {}}
  if data_set:
    name, _, builder_config = data_set.partition("/")
    section |= {"name": name, "config": builder_config}
  build = records.builder(section["name"], section["config"], data_dir)
  prepare.prepare(build)
  splits = tuple(splits) or tuple(build.info.splits)
  for split in splits:
    if not selection.Selection.parse(split).whole:
      raise ValueError(f"--splits={split}: name whole splits; of them others can be made later")
  section |= {"train": splits[0], "select": splits[0], "report": splits[1:]}
  return experiment.Data({**config, "data": section}, data_dir)


def _facts(data: experiment.Data, where: Path, step: int, weights: str) -> dict[str, Any]:
  build = data.build
  scoring = evaluate.Scoring.of(data.labels, records.metadata(build))
  return {
    "data": {
      "name": build.name,
      "config": build.builder_config.name if build.builder_config else "",
      "version": str(build.version),
      "fingerprint": data.summary["fingerprint"],
    },
    "run": str(where),
    "step": step,
    "weights": weights,
    "labels": {task: list(names) for task, names in data.labels.items()},
    "scored": {task: list(names) for task, names in scoring.scored.items()},
  }


def _known(output: Path, facts: dict[str, Any]) -> dict[str, Any]:
  """What the folder holds already, or that it holds nothing; ValueError if it is of other data."""
  path = output / features.DESCRIBED
  if not path.is_file():
    return facts | {"width": 0, "splits": {}}
  there = records.read_json(path, "name another --output")
  if differ := [name for name, value in facts.items() if there.get(name) != value]:
    raise ValueError(
      f"--output={output} holds what was extracted of another {' and '.join(differ)}: name another"
      " folder, or delete it"
    )
  return there


def _outputs(
  run: Any, data: experiment.Data, split: str, mesh: jax.sharding.Mesh
) -> dict[str, np.ndarray]:
  """Name -> [rows, ...] of what the model gives, of clips stitched together."""
  windows, opened = data.windows(split), data.records(split)
  count, size = len(opened), BATCH if windows is None else max(1, BATCH // windows.shape[1])
  size = -(-size // mesh.size) * mesh.size
  order = pipeline.sequence(count if windows is None else len(windows), size)
  rows = order if windows is None else pipeline.of_windows(order, windows)
  placed = pipeline.batches(opened, rows).map(lambda batch: sharding.global_batch(batch, mesh))
  ahead = grain.experimental.ThreadPrefetchIterDataset(placed, prefetch_buffer_size=2)
  parts: list[dict[str, np.ndarray]] = []
  flying = None
  with tqdm(total=count, desc=split, unit=" images", disable=None) as bar:
    for batch in ahead:
      present = () if windows is None else (batch["index"] >= 0,)
      given = run(batch["image"], *present)
      if flying is not None:
        parts.append(jax.device_get(flying))
      flying = given
      bar.update(min(size, count - bar.n) if windows is None else 0)
    parts.append(jax.device_get(flying))
    bar.update(count - bar.n)
  found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
  if windows is None:
    return {name: values[:count].astype(np.float32) for name, values in found.items()}
  return {n: clips.stitch(values[: len(windows)], windows, count) for n, values in found.items()}


def _write(output: Path, split: str, data: experiment.Data, outputs: dict[str, np.ndarray]) -> int:
  """Writes the files of a split; returns the numbers in a vector, 0 without any."""
  vectors = outputs.pop("features", None)
  bad = [name for name, values in outputs.items() if not np.isfinite(values).all()]
  if bad:
    raise ValueError(f"{split}: {', '.join(bad)} of the checkpoint are not finite")
  labels, masks = data.seen(split)
  columns = {
    **data.table(split),
    **{f"outputs/{name}": values for name, values in outputs.items()},
    **{f"labels/{task}": values for task, values in labels.items()},
    **{f"mask/{name}": values for name, values in masks.items()},
  }
  packed = io.BytesIO()
  np.savez(packed, **columns)
  records.store(output / f"{split}.npz", packed.getvalue())
  if vectors is None:
    return 0
  partial = io.BytesIO()
  np.save(partial, vectors)
  records.store(output / f"{split}.npy", partial.getvalue())
  return vectors.shape[1]


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.extract",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--checkpoint", required=True, metavar="RUN", help="folder of a run")
  parser.add_argument("--output", required=True, metavar="FOLDER", help="where the files go")
  parser.add_argument(
    "--data", default="", metavar="NAME[/CONFIG]", help="a data set; default the run's own"
  )
  parser.add_argument("--splits", default="", metavar="A,B", help="default: all that there are")
  parser.add_argument("--data_dir", metavar="FOLDER", help="where prepared data lives")
  parser.add_argument(
    "--which", default="best", metavar="STEP", help="best (default), latest, or a step"
  )
  parser.add_argument("--weights", default="ema", choices=["ema", "raw"], help="averaged or not")
  parser.add_argument(
    "--outputs_only", action="store_true", help="write no features, which are the larger part"
  )
  arguments = parser.parse_args(argv)
  compiled.keep()
  checkpoints.quiet()
  try:
    found = extract(
      Path(arguments.checkpoint),
      Path(arguments.output),
      data_set=arguments.data,
      splits=tuple(filter(None, arguments.splits.split(","))),
      data_dir=arguments.data_dir,
      which=arguments.which,
      weights=arguments.weights,
      vectors=not arguments.outputs_only,
    )
  except ValueError as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  rows = ", ".join(f"{split} {count:,}" for split, count in found["splits"].items())
  what = f"outputs and {found['width']} features" if found["width"] else "outputs"
  print(f"{what} of step {found['step']} in {arguments.output}: {rows} rows")


if __name__ == "__main__":
  main()
