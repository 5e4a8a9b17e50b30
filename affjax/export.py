"""A run's model in a folder of its own: weights, contract, model card.

  python -m affjax.export --checkpoint=runs/x --format=safetensors,stablehlo,onnx

  safetensors  the weights by name, for `affjax.load` and whoever builds the model anew
  stablehlo    the model as a program that JAX alone runs, on CPU, GPU and TPU, whatever the batch
  onnx         the same for ONNX Runtime and its like: see `affjax.onnx_export`

Beside them lie what goes in and what comes out (preprocess.json, labels.json), the run's config and
scores, and a model card (README.md): see `affjax.contract`. What is written is read again and
compared with the run's own predictions before it is in place; a folder that was there is replaced.
"""

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from affjax import calibrate, card, checkpoints, compiled, contract, evaluate, inference, workdir
from affjax.data import records

FORMATS = {
  "safetensors": contract.WEIGHTS,
  "stablehlo": contract.STABLEHLO,
  "onnx": contract.ONNX,
}
PLATFORMS = ("cpu", "cuda", "tpu")  # that a StableHLO program is for
BATCHES = (1, 3, 8)  # that what is written is tried on
TOLERANCE = 1e-6  # of values and probabilities
AGAIN = "python -m affjax.main --mode=evaluate --workdir=RUN writes it anew"


def export(
  where: Path,
  formats: Sequence[str] = ("safetensors",),
  output: Path | None = None,
  *,
  which: str = "best",
  weights: str = "ema",
  settings: str | Path | None = None,
  data_dir: str | None = None,
) -> Path:
  """Writes a folder that `affjax.load` opens, whole or not at all.

  Args:
    where: the run's folder.
    formats: of `FORMATS`.
    output: the folder; what is there of an earlier export is replaced. None: `export` in the run's.
    which: "best" by the run's metric, "latest", or a step.
    weights: "ema" (the moving average, where one is kept) or "raw".
    settings: of `affjax.calibrate --save`, to decide by.
    data_dir: where prepared data lives, whose counts the model card gives; None: TFDS's default.

  Returns:
    The folder.

  Raises:
    ValueError: no such run, checkpoint or format; the output is something else or cannot be
      written; or what was written does not give what the run's model gives.
  """
  if not formats or set(formats) - set(FORMATS):
    raise ValueError(f"--format={','.join(formats)}: use some of {', '.join(FORMATS)}")
  output = (output or where / "export").absolute()
  _check_output(output)
  predictor = inference.load(where, which, weights=weights, settings=settings)
  if (where / contract.PREPROCESS).is_file():
    raise ValueError(f"--checkpoint={where}: is an export: name the run that it is of")
  try:
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".affjax-export-", dir=output.parent) as place:
      partial = Path(place) / output.name
      partial.mkdir()
      _write(partial, where, predictor, formats, weights, settings, data_dir)
      if output.exists():
        output.rename(Path(place) / "before")
      partial.rename(output)
  except OSError as e:
    raise ValueError(
      f"--output={output}: cannot be written ({e.strerror or e}); nothing of it is kept: make room,"
      " or name another folder"
    ) from e
  return output


def _check_output(output: Path) -> None:
  """Raises ValueError where something is that an export should not replace."""
  if output.exists() and not output.is_dir():
    raise ValueError(f"--output={output}: is no folder: name another")
  if output.is_dir() and any(output.iterdir()) and not (output / contract.MANIFEST).is_file():
    raise ValueError(f"--output={output}: holds what is no export: name another folder")


def _write(
  folder: Path,
  where: Path,
  predictor: inference.Predictor,
  formats: Sequence[str],
  weights: str,
  settings: str | Path | None,
  data_dir: str | None,
) -> None:
  """Fills an empty folder, and tries what it holds."""
  config = predictor.config
  store = lambda name, tree: records.store(folder / name, json.dumps(tree, indent=1).encode())
  store(workdir.CONFIG, config)
  store(contract.PREPROCESS, predictor.contract)
  if settings:
    store(contract.SETTINGS, calibrate.read(settings))
  store(contract.LABELS, contract.labels(config, predictor.postprocess))
  params, model_state = predictor.arrays
  path = folder / contract.WEIGHTS
  # The order is the users'; of the parts, ONNX's starts from the weights.
  steps: list[tuple[str, Callable[[], None]]] = [
    ("weights", lambda: contract.write_weights(path, params, model_state, predictor.step)),
    ("weights, tried", lambda: _try_weights(folder, predictor)),
  ]
  if "stablehlo" in formats:
    steps.append(("stablehlo", lambda: write_program(folder, config, params, model_state)))
  if "onnx" in formats:
    steps.append(("onnx", lambda: _write_onnx(folder)))
  bar = tqdm(steps, "exporting", unit="", leave=False, disable=None)
  for name, step in bar:
    bar.set_postfix_str(name)
    step()
  if "safetensors" not in formats:
    path.unlink()
  contract.seal(folder, predictor.step)
  scores = _scores(where, predictor.step, weights)
  if scores:
    store(evaluate.SCORES, scores)
  text = card.text(folder, where, predictor, weights=weights, scores=scores, data_dir=data_dir)
  records.store(folder / contract.CARD, text.encode())


def _scores(where: Path, step: int, weights: str) -> dict[str, Any]:
  """The run's scores, if they are of this checkpoint."""
  path = where / evaluate.SCORES
  found = records.read_json(path, AGAIN) if path.is_file() else {}
  of_this = (found.get("step"), found.get("weights")) == (step, weights)
  return found if of_this and isinstance(found.get("scores"), dict) else {}


def inputs(predictor: inference.Predictor, batch: int, seed: int = 0) -> np.ndarray:
  """[batch, ...] of what a model takes: pictures of coarse and fine blots, or vectors."""
  rng = np.random.default_rng(seed + batch)
  given = predictor.contract["input"]
  shape = given["shape"][1:]
  if given["dtype"] != "uint8":
    return rng.normal(size=(batch, *shape)).astype(np.float32)
  size, frames = shape[-2], shape[:-3]
  picture = np.zeros((batch, *frames, size, size, 3))
  for cells in (2, 7, size):
    at = np.arange(size) * cells // size
    picture += rng.uniform(0, 255 / 3, (batch, *frames, cells, cells, 3))[..., at, :, :][..., at, :]
  return picture.astype(np.uint8)


def _try_weights(folder: Path, predictor: inference.Predictor) -> None:
  """Raises ValueError unless the folder predicts what the run does, to the bit."""
  contract.seal(folder, predictor.step)
  again = inference.load(folder)
  for batch in BATCHES:
    given = inputs(predictor, batch)
    given = given[:, 0] if contract.is_temporal(predictor.config) else given
    own, found = predictor.outputs(given), again.outputs(given)
    for name, values in own.items():
      if not np.isfinite(values).all():
        raise ValueError(f"the run's {name} is not finite: take another checkpoint, with --which")
      if not np.array_equal(found[name], values):
        raise ValueError(f"{contract.WEIGHTS}: {name} of a batch of {batch} is not that of the run")


def write_program(folder: Path, config: Mapping[str, Any], params: Any, model_state: Any) -> None:
  """Writes a model as a StableHLO program, its weights in it, and tries it on the CPU.

  It computes in float32 whatever the run did, and as precisely on every platform.

  Args:
    folder: gets `model.stablehlo`.
    config: of the run.
    params: host arrays.
    model_state: likewise.

  Raises:
    ValueError: it does not give what the model gives.
  """
  config = {**config, "dtype": "float32"}
  procedure = inference.open_procedure(config, folder / workdir.CONFIG)
  predictor = inference.Predictor(config, procedure, params, model_state)
  tasks = list(config["labels"])

  def model(*given: jax.Array) -> dict[str, jax.Array]:
    return contract.read_out(procedure.predict(params, model_state, *given), tasks)

  program = jax.jit(model)
  batch = jax.export.symbolic_shape("batch")[0]
  described = [predictor.contract["input"], predictor.contract["present"]]
  shapes = [
    jax.ShapeDtypeStruct((batch, *part["shape"][1:]), part["dtype"]) for part in described if part
  ]
  with jax.default_matmul_precision("highest"), _no_places():
    exported = jax.export.export(program, platforms=PLATFORMS)(*shapes)
  path = folder / contract.STABLEHLO
  records.store(path, exported.serialize())
  again = jax.jit(inference.open_program(path).call)
  with jax.default_device(jax.devices("cpu")[0]):
    for size in BATCHES:
      given = _with_present(inputs(predictor, size), len(shapes) == 2)
      own, found = program(*given), again(*given)
      for task, values in own.items():
        error = np.abs(np.asarray(values) - np.asarray(found[task])).max()
        if not error <= TOLERANCE:
          raise ValueError(
            f"{contract.STABLEHLO}: {task} of a batch of {size} is {error:.2g} from the run's, at"
            f" most {TOLERANCE} may be"
          )


def _with_present(given: np.ndarray, clips: bool) -> tuple[np.ndarray, ...]:
  """Inputs, and of clips which of their frames there are: of each another number."""
  if not clips:
    return (given,)
  count, length = given.shape[:2]
  return given, np.arange(length) <= np.arange(count)[:, None] * length // count


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
  """What is lowered in the block says nothing of the files on this machine that it is from."""
  options = {
    "jax_hlo_source_file_canonicalization_regex": ".*",
    "jax_traceback_in_locations_limit": 0,
  }
  before = {name: getattr(jax.config, name) for name in options}
  try:
    for name, value in options.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def _write_onnx(folder: Path) -> None:
  from affjax import onnx_export  # what it needs is not always there

  onnx_export.write(folder)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.export",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--checkpoint", required=True, metavar="RUN", help="folder of a run")
  add(
    "--format",
    default="safetensors",
    metavar="A,B",
    help=f"some of {', '.join(FORMATS)}; default safetensors",
  )
  add("--output", metavar="FOLDER", help="default: export in the run's folder")
  add(
    "--which",
    default="best",
    metavar="best|latest|STEP",
    help="of its checkpoints; default best, by the run's metric",
  )
  add("--weights", default="ema", choices=["ema", "raw"], help="averaged (default) or not")
  add(
    "--settings",
    metavar="FILE",
    help="what `python -m affjax.calibrate --save=FILE` chose: thresholds of units, biases",
  )
  add("--data_dir", metavar="FOLDER", help="where prepared data lives: the card gives its counts")
  arguments = parser.parse_args(argv)
  compiled.keep()
  checkpoints.quiet()
  try:
    folder = export(
      Path(arguments.checkpoint),
      tuple(filter(None, arguments.format.split(","))),
      Path(arguments.output) if arguments.output else None,
      which=arguments.which,
      weights=arguments.weights,
      settings=arguments.settings,
      data_dir=arguments.data_dir,
    )
  except ValueError as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  except KeyboardInterrupt:
    sys.exit("interrupted: nothing is written")
  files = [path for path in sorted(folder.iterdir()) if path.is_file()]
  for path in files:
    print(f"{path.stat().st_size / 1e6:9.3f} MB  {path.name}")
  print(
    f"{folder}: of step {contract.read_json(folder / contract.MANIFEST)['step']}; tried and equal"
  )


if __name__ == "__main__":
  main()
