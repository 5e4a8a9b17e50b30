"""The pixel probe: what linear models of tiny grey images score, to stand beside a system's score.

Ridge regression of valence and arousal and logistic regressions of expressions and units, on the
training split as the system sees it: the same rows through the same view. A system that does not
score above its probe has learnt no more of faces than where they are bright.
"""

import contextlib
import functools
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from affjax import experiment, metrics
from affjax.data import records

FILE = "affjax_probe_{}.json"  # beside the data

SIZE = 24  # height and width of the images, pixels
ROWS = 20_000  # of the training split, at most
# Of the squared weights against the sum over the rows; the one with the best score on the split
# that choices are made on is kept, of equal ones the first.
STRENGTHS = (1e3, 1e2, 1e1, 1e0, 1e-1)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue (ITU-R BT.601)
_STEPS, _TOLERANCE = 500, 1e-5  # of L-BFGS; the gradient's norm, for the mean over the rows

Scores = dict[str, float]
Linear = tuple[np.ndarray, np.ndarray]


def scores(data: experiment.Data, scoring: Any, splits: Sequence[str]) -> dict[str, Scores]:
  """Scores of the probe; fitted once for each view of a data set and kept beside it.

  Args:
    data: of a run: its training split is learnt from.
    scoring: the run's `evaluate.Scoring`.
    splits: to score, named as for `data.records`.

  Returns:
    Split -> scores, named as the run's; tasks that the training split does not label are left out.
  """
  path = Path(data.build.data_dir) / FILE.format(_key(data, scoring))
  kept: dict[str, Any] = {}
  if path.is_file():
    with contextlib.suppress(ValueError):  # damaged: made anew
      kept = records.read_json(path)
  if missing := [split for split in splits if split not in kept]:
    kept |= _fit_and_score(data, scoring, missing)
    if not data.skipped:  # of records that may be there another time
      records.keep(path, json.dumps(kept, indent=1).encode())
  return {split: kept[split] for split in splits}


def _key(data: experiment.Data, scoring: Any) -> str:
  """Hash of all that the probe depends on: data, labels as seen, rows and settings."""
  settings = [SIZE, ROWS, STRENGTHS, _STEPS, _TOLERANCE, data.train_split, data.select, data.labels]
  digest = hashlib.sha256(json.dumps([data.summary["fingerprint"], *settings]).encode())
  digest.update(repr(scoring).encode())
  for split in (data.train_split, data.select):
    for array in jax.tree.leaves(data.seen(split)):
      digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()[:16]


def _fit_and_score(data: experiment.Data, scoring: Any, splits: Sequence[str]) -> dict[str, Scores]:
  start = time.perf_counter()
  total = len(data.records(data.train_split))
  rows = np.sort(np.random.default_rng(0).permutation(total)[:ROWS])
  print(
    f"probe  linear models of {SIZE} x {SIZE} grey pixels, {len(rows)} of the {total} images of"
    f" {data.train_split}",
    flush=True,
  )
  read = functools.cache(lambda split: _read(data, split))
  train, select = _read(data, data.train_split, rows), read(data.select)
  features = _features(train["image"])
  train["x"], select["x"] = features(train["image"]), features(select["image"])
  models = {
    task: _best(task, scoring, train, select)
    for task in data.labels
    if task in _FITS and scoring.names_of(task) and train["mask"][task].any()
  }
  out = {}
  for split in splits:
    x = features(read(split)["image"])
    out[split] = _score(scoring, {t: predict(t, m, x) for t, m in models.items()}, read(split))
  print(f"       {time.perf_counter() - start:.0f} s, kept beside the data", flush=True)
  return out


def _read(data: experiment.Data, split: str, rows: np.ndarray | None = None) -> dict[str, Any]:
  """Images [rows, SIZE * SIZE] grey in [0, 1], labels and masks of a split."""
  opened = data.records(split, SIZE)
  rows = np.arange(len(opened)) if rows is None else rows

  def batch(rows: np.ndarray) -> dict[str, Any]:
    read = opened.batch(rows)
    return read | {"image": (read["image"] @ _GREY / 255).reshape(len(rows), -1)}

  parts = np.array_split(rows, -(-len(rows) // 256))
  with futures.ThreadPoolExecutor(2) as pool:
    bar = tqdm(pool.map(batch, parts), split, len(parts), leave=False, disable=None)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *bar)


def _features(images: np.ndarray) -> Any:
  """Says how images become features, by the training images' statistics.

  Pixels are standardised, then turned to their principal axes. Turning changes no model, as the
  penalty is the same in all directions, but makes the logistic ones quick to fit.

  Returns:
    [rows, pixels] -> [rows, pixels] float32.
  """
  mean, deviation = images.mean(0, dtype=np.float64), images.std(0, dtype=np.float64)
  deviation = np.where(deviation > 0, deviation, 1)
  standardised = (images - mean) / deviation
  axes = np.linalg.eigh(standardised.T @ standardised)[1]
  return lambda images: ((images - mean) / deviation @ axes).astype(np.float32)


def ridge(x: np.ndarray, y: np.ndarray, mask: np.ndarray, strength: float) -> Linear:
  """Linear regression with a penalty of strength * squared weights; the bias is free.

  Args:
    x: [rows, features].
    y: [rows, outputs].
    mask: [rows, outputs] 1 = labelled. Each output is fitted to its own labelled rows.
    strength: against the sum of the squared errors.

  Returns:
    weights [features, outputs] and bias [outputs], float64.
  """
  weights, bias = np.zeros((x.shape[1], y.shape[1])), np.zeros(y.shape[1])
  for output in np.flatnonzero(mask.any(0)):
    kept = mask[:, output] > 0
    of, to = x[kept].astype(np.float64), y[kept, output].astype(np.float64)
    centre, level = of.mean(0), to.mean()
    of -= centre
    gram = of.T @ of + strength * np.eye(of.shape[1])
    weights[:, output] = np.linalg.solve(gram, of.T @ (to - level))
    bias[output] = level - centre @ weights[:, output]
  return weights, bias


def _softmax_entropy(logits: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
  return (optax.softmax_cross_entropy(logits, y) * mask).sum()


def _sigmoid_entropy(logits: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
  return (optax.sigmoid_binary_cross_entropy(logits, y) * mask).sum()


def logistic_classes(x: np.ndarray, y: np.ndarray, mask: np.ndarray, strength: float) -> Linear:
  """Multinomial regression with a penalty of strength / 2 * squared weights; the biases are free.

  Args:
    x: [rows, features].
    y: [rows, classes] distributions.
    mask: [rows] 1 = labelled.
    strength: against the sum of the cross-entropies.

  Returns:
    weights [features, classes] and bias [classes].
  """
  return jax.device_get(_descend(_softmax_entropy, x, y, mask, strength))


def logistic_units(x: np.ndarray, y: np.ndarray, mask: np.ndarray, strength: float) -> Linear:
  """Logistic regression of each unit, likewise: y and mask are [rows, units]."""
  return jax.device_get(_descend(_sigmoid_entropy, x, y, mask, strength))


@functools.partial(jax.jit, static_argnums=0)
def _descend(entropy: Any, x: Any, y: Any, mask: Any, strength: float) -> tuple[Any, Any]:
  """L-BFGS from zeros, each weight in units in which its curvature is near one at the start."""
  rows = x.shape[0]
  scale = jnp.sqrt(rows / ((x**2).sum(0) / 4 + strength))[:, None]

  def loss(free: dict[str, Any]) -> jax.Array:
    weights = free["weights"] * scale
    logits = jnp.matmul(x, weights, precision="highest") + 2 * free["bias"]
    return (entropy(logits, y, mask) + strength / 2 * (weights**2).sum()) / rows

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry: tuple[Any, Any]) -> tuple[Any, Any]:
    free, state = carry
    value, grad = value_and_grad(free, state=state)
    updates, state = solver.update(grad, state, free, value=value, grad=grad, value_fn=loss)
    return optax.apply_updates(free, updates), state

  def goes_on(carry: tuple[Any, Any]) -> jax.Array:
    state = carry[1]
    step = optax.tree.get(state, "count")
    slope = optax.tree.norm(optax.tree.get(state, "grad"))
    return (step == 0) | ((step < _STEPS) & (slope > _TOLERANCE))

  start = {
    "weights": jnp.zeros((x.shape[1], y.shape[1])),
    "bias": jnp.zeros((1, y.shape[1])),
  }
  free, _ = jax.lax.while_loop(goes_on, step, (start, solver.init(start)))
  return free["weights"] * scale, 2 * free["bias"][0]


_FITS = {"va": ridge, "expression": logistic_classes, "au": logistic_units}


def predict(task: str, model: Linear, x: np.ndarray) -> np.ndarray:
  """[rows, features] -> [rows, outputs]: valence and arousal in [-1, 1], or logits."""
  weights, bias = model
  outputs = (x @ weights + bias).astype(np.float32)
  return outputs.clip(-1, 1) if task == "va" else outputs


def _best(task: str, scoring: Any, train: Mapping[str, Any], select: Mapping[str, Any]) -> Linear:
  """The model of the strength that scores best on the split that choices are made on."""
  found: list[tuple[float, Linear]] = []
  for strength in STRENGTHS:
    model = _FITS[task](train["x"], train["labels"][task], train["mask"][task], strength)
    scored = _score(scoring, {task: predict(task, model, select["x"])}, select)
    found.append((next(iter(scored.values()), 0.0), model))  # the first is the task's main score
  return max(found, key=lambda pair: pair[0])[1]


def _score(scoring: Any, outputs: Mapping[str, np.ndarray], batch: Mapping[str, Any]) -> Scores:
  states = scoring.states(outputs, batch)
  return scoring.scores({name: metrics.to_host(state) for name, state in states.items()})
