"""Runs a config with several seeds, and with every combination of some of its leaves.

  python scripts/sweep.py --config=configs/vit_mtl.py --seeds=3
  python scripts/sweep.py --config=configs/vit_mtl.py --seeds=3 \
    --vary model.decoder.depth 1 2 4 --vary model.encoder.stem conv residual \
    -- --config.steps=600 --config.evaluate.probe=False

Every run is the main job in a process of its own, in `--workdir`/COMBINATION/seed=N; what stands
after `--` goes to each. Runs that are finished are not run again and those that were stopped
continue, so the same command goes on where it was stopped; another config is refused in its folder.
A combination that the config refuses is a row that says why.

The table: mean of the score over the seeds, a 95 % interval of that mean (Student's t), the mean
difference from the first combination with its interval (seeds paired), parameters, and the median
of images/s while training. The same is in `--workdir`/sweep.json, with the score of every seed.
"""

import argparse
import functools
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags
from scipy import stats
from tqdm import tqdm

from affjax import evaluate, main, monitor, procedures, state, workdir

Combination = tuple[tuple[str, str], ...]


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--config", required=True, help="as of the main job: its file, with arguments after a colon")
  add("--seeds", type=int, default=3, help="how many: 0, 1, 2, ...")
  add(
    "--vary",
    nargs="+",
    action="append",
    default=[],
    metavar=("LEAF", "VALUE"),
    help="a leaf of the config and the values that it takes; may be given several times",
  )
  add("--split", help="whose scores are compared; the last one that is reported unless given")
  add("--metric", help="which score; the one that chooses the checkpoint unless given")
  add("--workdir", type=Path, help="where the runs live; runs/sweep-<config> unless given")
  add("rest", nargs="*", metavar="--config.LEAF=VALUE", help="after --: goes to every run")
  options = parser.parse_args(argv)
  for leaf in options.vary:
    if len(leaf) < 2:
      parser.error(f"--vary {leaf[0]}: name values that it takes, e.g. --vary {leaf[0]} 1 2")
  if options.seeds < 1:
    parser.error(f"--seeds={options.seeds}: use at least 1")
  if fixed := [flag for flag in options.rest if flag.startswith("--config.seed")]:
    parser.error(f"{fixed[0]}: seeds are 0, 1, 2, ...: use --seeds")
  options.workdir = options.workdir or Path("runs") / (
    "sweep-" + main.default_workdir(options.config).name
  )
  return options


def combinations(vary: Sequence[Sequence[str]]) -> list[Combination]:
  """Every way to take one value of each leaf, the last leaf changing fastest."""
  leaves = [[(leaf, value) for value in values] for leaf, *values in vary]
  return list(itertools.product(*leaves))


def title(combination: Combination) -> str:
  """`layout=mixed depth=2`: the last part of each leaf's name and its value."""
  return " ".join(f"{leaf.rpartition('.')[2]}={value}" for leaf, value in combination) or "as it is"


def folder(root: Path, combination: Combination, seed: int) -> Path:
  """Where a run lives."""
  return root / re.sub(r"[^\w=.-]+", "-", title(combination)) / f"seed={seed}"


def stated(command: Sequence[str]) -> dict[str, Any]:
  """The config that a command of the main job names, as it stands now, in plain types."""
  given = [argument for argument in command if argument.startswith("--config")]
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["", *given])
  values(["", *given])
  return json.loads(config.value.to_json_best_effort())


def run(options: argparse.Namespace, combination: Combination, seed: int) -> str:
  """Runs one to its end unless it is there; returns why the config refused it, or nothing.

  Raises:
    ValueError: what is there is a finished run of another config.
  """
  where = folder(options.workdir, combination, seed)
  command = ["-m", "affjax.main", f"--config={options.config}"]
  command += [f"--config.{leaf}={value}" for leaf, value in combination]
  command += [f"--config.seed={seed}", f"--workdir={where}", *options.rest]
  if (where / evaluate.SCORES).is_file():
    workdir.check(where, stated(command))
    return ""
  where.parent.mkdir(parents=True, exist_ok=True)
  log = where.parent / f"seed={seed}.log"
  with log.open("w") as file:
    done = subprocess.run([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT)
  code = done.returncode
  if code == 0:
    return ""
  last = log.read_text().strip().splitlines()[-1:]
  if last and last[0].startswith("error: "):
    return last[0].removeprefix("error: ")
  if code in (-2, -15, 130, 143):  # it was asked to stop, and so are we
    raise KeyboardInterrupt
  raise RuntimeError(f"{' '.join(command)} ended with code {code}; what it said: {log}")


def result(where: Path, split: str | None, metric: str | None) -> tuple[float, int, float]:
  """The score of a run, its parameters, and its images/s.

  Raises:
    ValueError: there is no such split or score.
  """
  config = workdir.read_config(where)
  scores = json.loads((where / evaluate.SCORES).read_text())["scores"]
  split = split or list(scores)[-1]
  if split not in scores:
    raise ValueError(f"--split={split}: {where} was scored on {', '.join(scores)}")
  metric = metric or config["checkpoint"]["metric"]
  if metric not in scores[split]:
    raise ValueError(f"--metric={metric}: the scores of {split} are {', '.join(scores[split])}")
  lines = map(json.loads, (where / monitor.LOG).read_text().splitlines())
  rates = [line["images_per_second"] for line in lines if "images_per_second" in line]
  count = parameters(json.dumps(config | {"seed": 0, "initialise": {}}))
  return scores[split][metric], count, float(np.median(rates or [math.nan]))


@functools.cache
def parameters(config: str) -> int:
  """Of the model of a config in JSON; once for all seeds, as it takes seconds."""
  return state.count(
    jax.eval_shape(procedures.from_config(json.loads(config)).init).params["model"]
  )


def interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
  count = len(values)
  if count < 2:
    return float(np.mean(values)), math.nan
  error = np.std(values, ddof=1) / math.sqrt(count)
  return float(np.mean(values)), float(stats.t.ppf(0.975, count - 1) * error)


def summarise(
  found: dict[Combination, list[tuple[float, int, float]]], refused: dict[Combination, str]
) -> list[dict[str, Any]]:
  """A row for each combination: what was found, or why it was refused."""
  rows, first = [], None
  for combination in [*found, *(c for c in refused if c not in found)]:
    row: dict[str, Any] = {"combination": dict(combination), "title": title(combination)}
    if combination in refused:
      rows.append(row | {"refused": refused[combination]})
      continue
    scores, parameters, rates = zip(*found[combination], strict=True)
    first = first or scores
    row["scores"], row["parameters"] = list(scores), parameters[0]
    row["mean"], row["interval"] = interval(scores)
    differences = [a - b for a, b in zip(scores, first, strict=True)]
    row["difference"], row["difference_interval"] = interval(differences)
    rows.append(row | {"images_per_second": float(np.median(rates))})
  return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as text."""
  width = max(len(row["title"]) for row in rows)
  lines = [f"{'':{width}}  {'mean':>7} {'+-':>6}  {'against 1st':>15}  {'params':>10} {'img/s':>6}"]
  for row in rows:
    if "refused" in row:
      lines.append(f"{row['title']:{width}}  refused: {row['refused']}")
      continue
    lines.append(
      f"{row['title']:{width}}  {row['mean']:7.3f} {row['interval']:6.3f}"
      f"  {row['difference']:+7.3f} +-{row['difference_interval']:5.3f}"
      f"  {row['parameters']:10,} {row['images_per_second']:6.0f}"
    )
  return "\n".join(lines)


def sweep(argv: Sequence[str] | None = None) -> None:
  """Runs what is not there yet, and prints the table."""
  options = parse(argv)
  found: dict[Combination, list[tuple[float, int, float]]] = {}
  refused: dict[Combination, str] = {}
  every = combinations(options.vary)
  with tqdm(total=len(every) * options.seeds, unit="run", desc="sweep") as bar:
    for combination, seed in itertools.product(every, range(options.seeds)):
      if combination not in refused:
        bar.set_postfix_str(f"{title(combination)}, seed {seed}")
        why = run(options, combination, seed)
        if why:
          refused[combination] = why
        else:
          where = folder(options.workdir, combination, seed)
          scores = found.setdefault(combination, [])
          scores.append(result(where, options.split, options.metric))
      bar.update()
  rows = summarise(found, refused)
  (options.workdir / "sweep.json").write_text(json.dumps(rows, indent=1))
  print(table(rows))


if __name__ == "__main__":
  try:
    sweep()
  except ValueError as e:
    sys.exit(f"error: {e}")
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on")
