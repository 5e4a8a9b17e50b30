"""What a model of time is worth over its twin that sees each frame alone, and when it is nothing.

  python -m scripts.measure_temporal                                      # 61 runs
  python -m scripts.measure_temporal --seeds 1 --steps 20 --encoder_steps 20   # whether it runs

A small flagship learns from pictures (`synthetic_faces`) and is frozen. It gives features of every
frame of `synthetic_faces/clips` (8 seconds of one person each, 8 frames a second; 64 people to
learn from, 16 to choose a checkpoint by, 16 to report), once as they are and once with noise
planted on the pixels: with probability 1/2, each frame on its own is covered with snow, blurred to
6 x 6 pixels, or loses a square of two thirds of its side. Labels stay exact. On these features a
GRU, a transformer over windows of 32 frames and their frame-wise twin (`configs/temporal.py`) learn
with the same seeds: the same clips in the same order.

Arms: `clean`; `noise`; `noise, shuffled clips` and `noise, shuffled split`: with frames at times
that are not theirs, of the same person or of anybody (`config.data.clips.shuffle`), where they are
learnt from and where they are scored.

The rules, declared before the first run. An interval is Student's 95 % over the seeds, of
differences of the test score P (mean CCC + F1 of the expressions + F1 of the units), model - twin.

  1. With noise the GRU beats the twin: its interval lies above 0. So does the transformer.
  2. With noise and times shuffled over the split neither does: its interval does not lie above 0.
  3. That (1) is the noise's doing: the interval of noise - clean lies above 0, for each of the two.
  4. Reported, without a claim: clean, and shuffled within clips, where other frames still say whose
     face it is and how that person looks at other times.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from tqdm import tqdm

import affjax
from affjax import compiled, evaluate, procedures, state, train
from affjax.data import features, prepare, records
from configs import temporal, vit_mtl
from scripts import sweep

PIXELS = 48
DATA = ("synthetic_faces", "clips_large")
SPLITS = ("train", "validation", "test")
TWIN = "framewise"
MODELS = (TWIN, "gru", "transformer")
# Arm -> features and shuffling of times.
ARMS = {
  "clean": ("clean", "none"),
  "noise": ("noise", "none"),
  "noise, shuffled clips": ("noise", "clip"),
  "noise, shuffled split": ("noise", "split"),
}
SCORES = ("p_mtl", "va/ccc", "expression/f1", "au/f1")
RATE = 0.5  # of frames with noise
BATCH = 256

Runs = Mapping[str, Mapping[str, list[dict[str, float]]]]  # arm -> model -> scores of each seed


def encoder(where: Path, steps: int, data_dir: str | None) -> Path:
  """Trains the encoder, unless that is done; returns its folder."""
  c = vit_mtl.get_config(f"variant=mu/8,steps={steps}")
  c.image_size = c.data.image_size = PIXELS
  c.data.view.masks = "none"
  c.procedure.ema_decay = 0.98
  c.evaluate.every = c.checkpoint.every = steps
  c.evaluate.probe = False
  where = where / f"encoder-{steps}"
  if not (where / evaluate.SCORES).is_file():
    train.run(json.loads(c.to_json_best_effort()), where, data_dir)
  return where


def planted(images: np.ndarray, seed: int) -> np.ndarray:
  """Frames with noise on some of them, each on its own.

  Args:
    images: [frames, height, width, 3] uint8.
    seed: of what is drawn.
  """
  rng = np.random.default_rng(seed)
  size, images = images.shape[1], images.copy()
  for frame in np.flatnonzero(rng.random(len(images)) < RATE):
    kind, image = rng.integers(3), images[frame]
    if kind == 0:
      snow = image + rng.normal(0, 90, image.shape)
      images[frame] = snow.clip(0, 255).round()
    elif kind == 1:
      small = cv2.resize(image, (6, 6), interpolation=cv2.INTER_AREA)
      images[frame] = cv2.resize(small, (size, size), interpolation=cv2.INTER_LINEAR)
    else:
      side = 2 * size // 3
      y, x = rng.integers(0, size - side + 1, 2)
      images[frame, y : y + side, x : x + side] = 127
  return images


def extract(run: Path, output: Path, noise: bool, data_dir: str | None) -> Path:
  """Writes features of the clips' frames, as `affjax.extract` does, unless they are there."""
  if (output / features.DESCRIBED).is_file():
    return output
  build = records.builder(*DATA, data_dir)
  fingerprint = prepare.prepare(build)["fingerprint"]
  predictor = affjax.load(run)
  output.mkdir(parents=True, exist_ok=True)
  lengths = {}
  for seed, split in enumerate(SPLITS):
    opened = records.records(build, split, {}, PIXELS)
    parts = np.array_split(np.arange(len(opened)), -(-len(opened) // BATCH))
    images = [opened.batch(rows)["image"] for rows in tqdm(parts, split, disable=None)]
    images = np.concatenate(images)
    vectors = predictor.features(planted(images, seed) if noise else images)
    np.save(output / f"{split}.npy", vectors)
    lengths[split] = len(vectors)
  described = {"data": {"name": build.name, "fingerprint": fingerprint}, "splits": lengths}
  text = json.dumps(described | {"width": vectors.shape[1]})
  (output / features.DESCRIBED).write_text(text)
  return output


def config(model: str, folder: Path, shuffle: str, seed: int, steps: int) -> dict[str, Any]:
  """Of a run; arms and models differ by their arguments alone."""
  data = "/".join(DATA)
  c = temporal.get_config(f"data={data},features={folder},temporal={model},steps={steps}")
  c.seed, c.data.clips.shuffle = seed, shuffle
  c.log_every = max(steps // 10, 1)
  return json.loads(c.to_json_best_effort())


def run(where: Path, settings: dict[str, Any], data_dir: str | None) -> dict[str, float]:
  """Scores on the test split; of a finished run, as kept."""
  if not (where / evaluate.SCORES).is_file():
    train.run(settings, where, data_dir)
  return json.loads((where / evaluate.SCORES).read_text())["scores"]["test"]


def gains(runs: Runs, arm: str, model: str, score: str = "p_mtl") -> np.ndarray:
  """[seeds] of a model over its twin."""
  of = lambda name: np.array([scores[score] for scores in runs[arm][name]])
  return of(model) - of(TWIN)


def report(runs: Runs) -> str:
  """Means of the scores, then each rule with its interval and what it makes of it."""
  lines = [f"{'test scores, means':36}" + "".join(f"{score:>15}" for score in SCORES)]
  for arm, of_models in runs.items():
    for model, scores in of_models.items():
      means = [np.mean([found[score] for found in scores]) for score in SCORES]
      lines.append(f"{arm:24}{model:12}" + "".join(f"{mean:15.3f}" for mean in means))
  lines.append(f"\n{'P of model - twin':48}{'mean':>8}  95 % interval")

  def line(what: str, values: np.ndarray, verdict: tuple[str, str] | None) -> None:
    mean, half = sweep.interval(values)
    said = "" if verdict is None else verdict[not mean - half > 0]
    lines.append(f"{what:48}{mean:8.3f}  [{mean - half:6.3f} {mean + half:6.3f}]  {said}")

  for model in MODELS[1:]:
    of = lambda arm, model=model: gains(runs, arm, model)
    line(f"1 {model}, noise", of("noise"), ("beats it", "not shown"))
    split = of("noise, shuffled split")
    line(f"2 {model}, noise, shuffled split", split, ("BEATS IT", "does not beat it"))
    line(f"3 {model}, noise - clean", of("noise") - of("clean"), ("the noise's", "not shown"))
    line(f"4 {model}, clean", of("clean"), None)
    line(f"4 {model}, noise, shuffled clips", of("noise, shuffled clips"), None)
  return "\n".join(lines)


def sizes(settings: Mapping[str, dict[str, Any]]) -> str:
  """Parameters of each model."""
  plain = lambda c: c | {"losses": {t: {"name": s["name"]} for t, s in c["losses"].items()}}
  made = {name: procedures.from_config(plain(c)) for name, c in settings.items()}
  counts = {n: state.count(jax.eval_shape(p.init).params["model"]) for n, p in made.items()}
  return "parameters: " + ", ".join(f"{name} {count:,}" for name, count in counts.items())


def main() -> None:
  """Trains what is not there yet and prints the tables."""
  options = parse()
  compiled.keep()
  root = Path(options.workdir)
  trained = encoder(root, options.encoder_steps, options.data_dir)
  folders = {
    kind: extract(trained, root / f"{trained.name}-{kind}", kind == "noise", options.data_dir)
    for kind in ("clean", "noise")
  }
  runs: Runs = {arm: {model: [] for model in MODELS} for arm in ARMS}
  for seed in range(options.seeds):
    for arm, (kind, shuffle) in ARMS.items():
      settings = {m: config(m, folders[kind], shuffle, seed, options.steps) for m in MODELS}
      for model, section in settings.items():
        name = f"{trained.name}-{arm.replace(', ', '-').replace(' ', '-')}-{model}"
        where = root / f"{name}-{options.steps}-{seed}"
        runs[arm][model].append(run(where, section, options.data_dir))
        print(f"{arm}, {model}, seed {seed}: P {runs[arm][model][-1]['p_mtl']:.3f}", flush=True)
  print(f"\n{options.seeds} seed(s), {options.steps} steps; {sizes(settings)}\n{report(runs)}")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--seeds", type=int, default=5)
  add("--steps", type=int, default=300, help="updates of each run")
  add("--encoder_steps", type=int, default=800, help="updates of the encoder")
  add("--workdir", default="runs/temporal", help="where the runs live; finished ones are kept")
  add("--data_dir", help="where prepared data lives; TFDS's folder unless given")
  return parser.parse_args()


if __name__ == "__main__":
  main()
