"""What scoring costs: metrics of a million rows against NumPy and scikit-learn, and an evaluation
against its own forward passes.

  python -m scripts.benchmark_metrics
  python -m scripts.benchmark_metrics --rows=100000 --rounds=10

Both sides get the same arrays in memory. Ours is one jitted call over batches of 4,096 whose states
are merged in float64; theirs is what a script would write. The last rows are an evaluator's whole
pass over synthetic faces against the bare forward passes on batches that are in memory already, in
turns.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import numpy as np
from sklearn import metrics as sklearn_metrics

from affjax import evaluate, experiment, sharding
from affjax.data import pipeline
from configs import vit_mtl
from scripts import sweep

BATCH = 4096


def table_of(rows: int) -> tuple[dict, dict, dict]:
  """Outputs, labels and masks of as many rows; some are not labelled."""
  rng = np.random.default_rng(0)
  single = lambda x: np.asarray(x, np.float32)
  labels = {
    "va": single(rng.uniform(-1, 1, (rows, 2))),
    "expression": single(np.eye(8)[rng.integers(0, 8, rows)]),
    "au": single(rng.integers(0, 2, (rows, 12))),
  }
  outputs = {task: single(x + rng.normal(0, 1, x.shape)) for task, x in labels.items()}
  mask = {
    "va": single(rng.random((rows, 2)) < 0.9),
    "expression": single(rng.random(rows) < 0.9),
    "au": single(rng.random((rows, 12)) < 0.9),
  }
  return outputs, labels, mask


def ours(outputs: dict, labels: dict, mask: dict) -> Callable[[], dict[str, float]]:
  """Scores as evaluation makes them."""
  scoring = evaluate.Scoring(dict(vit_mtl.get_config().labels))
  cut = lambda x: x[: len(x) // BATCH * BATCH].reshape(-1, BATCH, *x.shape[1:])
  batches = jax.device_put(jax.tree.map(cut, (outputs, labels, mask)))
  states = jax.jit(
    lambda batches: jax.lax.map(
      lambda part: scoring.states(part[0], {"labels": part[1], "mask": part[2]}), batches
    )
  )
  return lambda: scoring.scores(evaluate.merge(states(batches)))


def theirs(outputs: dict, labels: dict, mask: dict) -> Callable[[], dict[str, float]]:
  """NumPy's moments and scikit-learn's F1."""
  rows = len(labels["va"]) // BATCH * BATCH

  def scores() -> dict[str, float]:
    ccc = []
    for k in range(2):
      keep = mask["va"][:rows, k] > 0
      x, y = (t["va"][:rows, k][keep].astype(np.float64) for t in (outputs, labels))
      covariance = ((x - x.mean()) * (y - y.mean())).mean()
      ccc.append(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))
    keep = mask["expression"][:rows] > 0
    expression = sklearn_metrics.f1_score(
      labels["expression"][:rows][keep].argmax(1),
      outputs["expression"][:rows][keep].argmax(1),
      average="macro",
    )
    units = []
    for k in range(12):
      keep = mask["au"][:rows, k] > 0
      units.append(
        sklearn_metrics.f1_score(labels["au"][:rows, k][keep], outputs["au"][:rows, k][keep] >= 0)
      )
    return {"va/ccc": np.mean(ccc), "expression/f1": expression, "au/f1": np.mean(units)}

  return scores


def timed(function: Callable[[], object]) -> float:
  """Seconds of a call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def evaluation(data_dir: str | None) -> tuple[Callable[[], object], Callable[[], object]]:
  """An evaluator's pass over a split, and its forward passes alone."""
  config = json.loads(vit_mtl.get_config().to_json_best_effort())
  _, data, procedure, mesh = experiment.open_training(config, data_dir)
  state = jax.jit(procedure.init)()
  whole = evaluate.evaluator(config, data, data.select, procedure, mesh, often=True)
  split = data.records(data.select)
  size = config["evaluate"]["batch_size"]
  images = [
    sharding.global_batch(batch["image"], mesh)
    for batch in pipeline.batches(split, pipeline.sequence(len(split), size))
  ]
  forward = jax.jit(procedure.predict)

  def bare() -> None:
    for batch in images:
      found = forward(state.averaged, state.model_state, batch)
    jax.block_until_ready(found)

  return lambda: whole(state.averaged, state.model_state), bare


def main() -> None:
  """Measures and prints the table."""
  options = parse()
  arrays = table_of(options.rows)
  mine, others = ours(*arrays), theirs(*arrays)
  a, b = mine(), others()
  for name, value in b.items():
    assert abs(a[name] - value) < 1e-5, (name, a[name], value)
  pairs = [(timed(mine), timed(others)) for _ in range(options.rounds)]
  report(f"metrics of {options.rows:,} rows", "affjax", "NumPy, scikit-learn", pairs)
  whole, bare = evaluation(options.data_dir)
  timed(whole), timed(bare)
  pairs = [(timed(whole), timed(bare)) for _ in range(options.rounds)]
  report("evaluation of 2,048 faces", "whole", "forward passes alone", pairs)


def report(title: str, first: str, second: str, pairs: list[tuple[float, float]]) -> None:
  """Prints medians and the ratio with its interval."""
  mean, half = sweep.interval([np.log(x / y) for x, y in pairs])
  low, ratio, high = np.exp([mean - half, mean, mean + half])
  a, b = np.median(pairs, axis=0)
  print(f"{title}: {first} {a:.3f} s, {second} {b:.3f} s, ratio {ratio:.3f} [{low:.3f} {high:.3f}]")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=1_000_000)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--data_dir", help="where prepared data lives")
  return parser.parse_args()


if __name__ == "__main__":
  main()
