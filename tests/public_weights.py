"""Weights under public names, drawn anew anywhere alike, and what our encoders make of them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax import build
from affjax.models import convolutions, weights

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-4  # of the largest number


def draw(shapes, seed=0):
  """Name -> random array, biases and statistics too, in the order of the names.

  Of blocks that are added to their input scales are about a half: numbers that double with each
  block make switches of gates, and then the least difference decides.

  NumPy has promised that the numbers of `RandomState` stay as they are.
  """
  rng, arrays = np.random.RandomState(seed), {}
  scale = 0.5 if any("downsample" in name or "shortcut" in name for name in shapes) else 1.0
  for name, shape in sorted(shapes.items()):
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
      array = np.exp(0.3 * noise)
    elif name.endswith("num_batches_tracked"):
      array = np.zeros(shape, np.int64)
    elif len(shape) > 1:
      array = noise * np.float32((2 / np.prod(shape[1:])) ** 0.5)
    else:  # a scale, or a slope; else a bias or a mean
      array = scale * (1 + 0.3 * noise) if name.endswith("weight") else 0.3 * noise
    arrays[name] = array
  return arrays


def images(size, batch=2, seed=0):
  """[batch, size, size, 3] float32 uniform in [-1, 1]."""
  noise = np.random.RandomState(seed).uniform(-1, 1, (batch, size, size, 3))
  return noise.astype(np.float32)


def encoder(public, image_size, **changes):
  """The encoder that weights need, filled with them."""
  section = public.encoder | changes
  if isinstance(section.get("norm"), list):
    section["norm"] = section["norm"][0]
  options = dict(image_size=image_size, dtype="float32")
  make = lambda: build.build(section, "affjax.models", **options, rngs=nnx.Rngs(0))
  model = empty(make)
  folds = section.get("norm") == "none" and any("/norm/" in name for name in public.arrays)
  epsilon = getattr(model, "epsilon", convolutions.EPSILON)
  arrays = weights.fold(public.arrays, epsilon) if folds else public.arrays
  weights.fill(model, arrays)
  return model


def empty(make):
  """What `make` makes, with zeros in it: no number is drawn, and nothing compiled for that."""
  model = nnx.eval_shape(make)
  zeros = lambda x: jnp.asarray(np.zeros(x.shape, x.dtype))
  return nnx.merge(nnx.graphdef(model), jax.tree.map(zeros, nnx.state(model)))


def drawn(make, seed=0):
  """What `make` makes, with random numbers for all its own; scales and variances stay above 0."""
  model, rng = empty(make), np.random.default_rng(seed)
  for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
    shape = variable[...].shape
    if path[-1] == "kernel":
      values = rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape)
    else:
      values = (path[-1] in ("scale", "var")) + rng.uniform(-0.4, 0.4, shape)
    variable[...] = jnp.asarray(values, jnp.float32)
  return model


def answer(model, x, **options):
  """What a model makes of images, compiled as one program and in full precision."""
  graph, state = nnx.split(model)
  run = jax.jit(lambda state, x: nnx.merge(graph, state)(x, **options))
  with jax.default_matmul_precision("highest"):
    run = run.lower(state, x).compile({"xla_backend_optimization_level": 0})  # it runs once
  return np.asarray(run(state, x))


def check(found, expected, what=""):
  """Holds numbers against others, by the size of the largest of these."""
  size = np.abs(expected).max()
  assert np.abs(expected).std() > 1e-3 * size
  np.testing.assert_allclose(
    found.reshape(expected.shape) / size, expected / size, atol=TOLERANCE, rtol=0, err_msg=what
  )


def check_golden(name):
  """Compares each network in a file of goldens with ours, by its last map or its one token."""
  with np.load(GOLDENS / f"{name}.npz") as file:
    arrays = dict(file)
  kinds = [key.removesuffix("/shapes") for key in arrays if key.endswith("/shapes")]
  assert kinds
  for kind in kinds:
    shapes = json.loads(str(arrays[f"{kind}/shapes"]))
    expected, pixels = arrays[f"{kind}/output"], images(int(arrays[f"{kind}/image_size"]))
    public = weights.convert(draw(shapes))
    check(answer(encoder(public, pixels.shape[1], grid=0), pixels), expected, kind)
