"""Makes tests/goldens/run: a run of a tiny model that every later version must be able to open.

  python scripts/make_golden_run.py

It trains the flagship's smallest relative for two steps on tiny synthetic faces, keeps the last
checkpoint, and beside it what was in it (`state.npz`, by name) and what the model says of a few
images (`outputs.npz`). It is made once: what this version writes is what later ones must read, so
another is added beside it only where the format changes on purpose.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

import affjax
from affjax import checkpoints, experiment, paths, procedures, sharding, train, workdir
from configs import vit_mtl

GOLDEN = Path(__file__).parent.parent / "tests" / "goldens" / "run"
KEPT = (workdir.CONFIG, workdir.CHECKPOINTS)


def tiny() -> dict:
  """The config: token layouts, moving average and optimiser as the default, all sizes small."""
  config = vit_mtl.get_config("debug,steps=2")
  config.batch_size = 8
  config.model.encoder.update(variant="mu/16", stem="patch", width=16, depth=1, num_heads=2)
  config.model.decoder.update(width=16, num_heads=2, depth=1, readout=0)
  config.losses.expression.logit_adjustment = config.losses.au.positive_weight = None
  config.evaluate.every = 2
  return json.loads(config.to_json_best_effort())


def images() -> np.ndarray:
  """[4, 112, 112, 3] uint8."""
  return np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), np.uint8)


def state_of(where: Path) -> tuple[dict[str, np.ndarray], dict]:
  """Every array of a run's last checkpoint by name, and the position it was saved with."""
  config = workdir.read_config(where)
  saved = checkpoints.Checkpoints(where / workdir.CHECKPOINTS, read_only=True)
  procedure = procedures.from_config(config)
  state, position = saved.restore(
    saved.latest, experiment.abstract_state(procedure, sharding.make_mesh())
  )
  saved.close()
  return {name: np.asarray(x) for name, x in paths.named(jax.device_get(state)).items()}, position


def neutral(where: Path, folder: str) -> None:
  """Takes the place where it was made out of what Orbax wrote, and seals it anew."""
  for path in where.rglob("commit_success.txt"):
    path.write_text(path.read_text().replace(folder, ""))
  for step in (where / workdir.CHECKPOINTS).iterdir():
    checkpoints.seal(step)


def main() -> None:
  """Trains and writes."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--output", type=Path, default=GOLDEN, help="folder; must not be there")
  parser.add_argument("--data_dir", help="where prepared data lives")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    where = Path(folder) / "run"
    train.run(tiny(), where, options.data_dir)
    options.output.mkdir(parents=True)
    for name in KEPT:
      kept = shutil.copytree if (where / name).is_dir() else shutil.copy
      kept(where / name, options.output / name)
    neutral(options.output, folder)
  np.savez_compressed(options.output / "state.npz", **state_of(options.output)[0])
  np.savez_compressed(
    options.output / "outputs.npz", **affjax.load(str(options.output)).outputs(images())
  )
  size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file())
  print(f"{options.output}: {size:,} bytes")


if __name__ == "__main__":
  main()
