"""Learning itself: what the step must never do, and that it can learn everything there is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from flax import nnx

from affjax import evaluate, metrics, procedures, sharding
from affjax.data import records
from affjax.procedures import supervised

QUIET = dict(
  flip_rate=0.0, scale=0.0, shift=0.0, brightness=0.0, contrast=0.0, cast=0.0, grey_rate=0.0,
  erase_rate=0.0,
)  # fmt: skip


def noise_batch(labelled=("va", "expression", "au"), size=8):
  rng = np.random.default_rng(0)
  has = lambda task, *shape: np.full(shape, float(task in labelled), np.float32)
  return {
    "image": rng.integers(0, 256, (size, 112, 112, 3), np.uint8),
    "labels": {
      "va": rng.uniform(-1, 1, (size, 2)).astype(np.float32),
      "expression": np.eye(8, dtype=np.float32)[rng.integers(0, 8, size)],
      "au": rng.integers(0, 2, (size, 12)).astype(np.float32),
    },
    "mask": {
      "va": has("va", size, 2),
      "expression": has("expression", size),
      "au": has("au", size, 12),
    },
  }


def plain_gradient(labelled):
  """The change of every parameter by one step of gradient descent, without decay."""
  config = debug_config(optimizer__weight_decay=0.0, procedure__ema_decay=0.0)
  procedure = procedures.from_config(config)
  state = jax.jit(procedure.init)().replace(step=jnp.int32(5))
  after, logged = jax.jit(procedure.train_step)(state, noise_batch(labelled))
  moments = jax.tree.leaves(after.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
  mu = next(x.mu for x in moments if hasattr(x, "mu"))
  return jax.device_get(mu), jax.device_get(logged)


@pytest.mark.parametrize("missing", ["va", "expression", "au"])
def test_a_task_without_labels_has_exactly_no_gradient(missing):
  tasks = ["va", "expression", "au"]
  others = [task for task in tasks if task != missing]
  gradient, logged = plain_gradient(others)
  heads = gradient["model"]["decoder"]["heads"]
  own = [v for path, v in jax.tree_util.tree_leaves_with_path(heads)
         if missing in jax.tree_util.keystr(path)]  # fmt: skip
  assert own
  assert all((leaf == 0).all() for leaf in own)
  assert gradient["log_variance"][missing] == 0
  assert logged[f"weight/{missing}"] == 0
  assert logged[f"loss/{missing}"] == 0
  for task in others:
    assert gradient["log_variance"][task] != 0


def test_a_batch_without_any_label_changes_nothing_by_its_gradient():
  gradient, logged = plain_gradient([])
  assert logged["loss"] == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_the_step_depends_on_seed_and_step_alone():
  config = debug_config()
  procedure = procedures.from_config(config)
  step = jax.jit(procedure.train_step)
  state = jax.jit(procedure.init)()
  batch = noise_batch()
  (_, first), (_, again) = step(state, batch), step(state, batch)
  assert first["loss"] == again["loss"]
  _, later = step(state.replace(step=jnp.int32(7)), batch)
  assert later["loss"] != first["loss"]
  other = procedures.from_config(debug_config(seed=1))
  assert not np.array_equal(
    jax.jit(other.init)().params["model"]["decoder"]["tokens"],
    state.params["model"]["decoder"]["tokens"],
  )


# Micro-batches.

PARTS = 4


class Toy(nnx.Module):
  """A dense layer and a head for each task."""

  def __init__(self, *, dropout_rate=0.0, norm=False, rngs):
    self.dense = nnx.Linear(8 * 8 * 3, 32, rngs=rngs)
    self.norm = nnx.BatchNorm(32, momentum=0.5, rngs=rngs) if norm else None
    self.dropout = nnx.Dropout(dropout_rate)
    sizes = {"va": 2, "expression": 3, "au": 4}
    self.heads = nnx.Dict({task: nnx.Linear(32, n, rngs=rngs) for task, n in sizes.items()})

  def __call__(self, images, *, train=False, rngs=None):
    x = jnp.tanh(self.dense(images.reshape(len(images), -1)))
    if self.norm is not None:
      x = self.norm(x, use_running_average=not train)
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    return {task: head(x) for task, head in self.heads.items()}


def toy(accumulate, **model):
  """Its procedure; the optimiser's state is the gradient."""
  return supervised.Supervised(
    make_model=lambda rngs: Toy(**model, rngs=rngs),
    image_size=8,
    losses={
      "va": {"name": "losses.ccc_loss"},
      "expression": {"name": "losses.cross_entropy", "class_weights": [1.0, 2.0, 0.5]},
      "au": {"name": "losses.binary_focal_cross_entropy"},
    },
    optimizer=(optax.trace(decay=0.0), lambda step: 0.0),
    augment=QUIET,
    seed=0,
    accumulate=accumulate,
  )


def toy_batch(size=32):
  """Micro-batches that differ in their images, in what is labelled, and in va by their means."""
  rng = np.random.default_rng(0)
  part = np.arange(size) % PARTS
  images = rng.integers(0, 60, (size, 8, 8, 3)) + 60 * part.reshape(-1, 1, 1, 1)
  va = rng.uniform(-0.1, 0.1, (size, 2)) + part[:, None] / 2 - 0.75
  return {
    "image": images.astype(np.uint8),
    "labels": {
      "va": va.astype(np.float32),
      "expression": np.eye(3, dtype=np.float32)[rng.integers(0, 3, size)],
      "au": rng.integers(0, 2, (size, 4)).astype(np.float32),
    },
    "mask": {
      "va": (rng.uniform(size=(size, 2)) < 0.9).astype(np.float32),
      "expression": (part != 1).astype(np.float32),
      "au": ((part != 1)[:, None] & (rng.uniform(size=(size, 4)) < 0.4)).astype(np.float32),
    },
  }


def gradient_and_log(procedure, batch, mesh=None):
  placed = dict(out_shardings=sharding.replicated(mesh)) if mesh else {}
  state = jax.jit(procedure.init, **placed)()
  batch = sharding.global_batch(batch, mesh) if mesh else batch
  after, logged = jax.jit(procedure.train_step, **placed)(state, batch)
  return jax.device_get((after.opt_state.trace, logged))


def differ(left, right):
  """By how much two gradients differ, as a share of the larger."""
  norm = lambda tree: np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in tree))
  left, right = jax.tree.leaves(left), jax.tree.leaves(right)
  return norm([a - b for a, b in zip(left, right, strict=True)]) / max(norm(left), norm(right))


def test_micro_batches_have_the_gradient_and_the_losses_of_the_whole_batch():
  batch = toy_batch()
  whole, of_whole = gradient_and_log(toy(1), batch)
  pieces, of_pieces = gradient_and_log(toy(PARTS), batch)
  for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
    np.testing.assert_allclose(left, right, rtol=1e-5, atol=2e-6 * np.abs(left).max())
  assert set(of_whole) == set(of_pieces)
  for name in of_whole:
    np.testing.assert_allclose(of_pieces[name], of_whole[name], rtol=1e-5)


def test_the_mean_over_micro_batches_would_have_been_another():
  batch = toy_batch()
  whole, of_whole = gradient_and_log(toy(1), batch)
  of_part = lambda part: jax.tree.map(lambda x: x[part::PARTS], batch)
  alone = [gradient_and_log(toy(1), of_part(part)) for part in range(PARTS)]
  assert alone[1][1]["loss/expression"] == alone[1][1]["loss/au"] == 0
  mean = jax.tree.map(lambda *x: np.mean(x, 0), *[gradient for gradient, _ in alone])
  assert differ(whole, mean) > 0.2
  for task in ("va", "expression", "au"):
    small = np.mean([logged[f"loss/{task}"] for _, logged in alone])
    assert abs(small - of_whole[f"loss/{task}"]) > 0.05, task


def test_a_batch_without_any_label_has_no_gradient_in_micro_batches_either():
  batch = toy_batch()
  batch["mask"] = jax.tree.map(np.zeros_like, batch["mask"])
  gradient, logged = gradient_and_log(toy(PARTS), batch)
  assert logged["loss"] == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_a_micro_batch_has_the_same_dropout_forward_and_back():
  procedure, batch = toy(PARTS, dropout_rate=0.5), toy_batch()
  gradient, _ = gradient_and_log(procedure, batch)
  state = jax.jit(procedure.init)()
  step = jax.jit(procedure.train_step)

  def loss(distance):
    moved = jax.tree.map(lambda p, g: p + distance * g, state.params, gradient)
    return float(step(state.replace(params=moved), batch)[1]["loss"])

  # The slope along the gradient is its square; of another dropout's loss it would be far from it.
  size = float(optax.global_norm(gradient))
  distance = 3e-3 / size
  assert (loss(distance) - loss(-distance)) / (2 * distance) == pytest.approx(size**2, rel=0.02)


def test_batch_statistics_see_each_micro_batch_once():
  procedure, batch = toy(PARTS, norm=True), toy_batch()
  state = jax.jit(procedure.init)()
  after, _ = jax.jit(procedure.train_step)(state, batch)
  images, _, _ = procedure.view(batch, state.step)
  dense = state.params["model"]["dense"]
  hidden = jnp.tanh(images.reshape(len(images), -1) @ dense["kernel"] + dense["bias"][None])
  expected = np.zeros(32)
  for part in range(PARTS):
    expected = 0.5 * expected + 0.5 * hidden[part::PARTS].mean(0)
  np.testing.assert_allclose(after.model_state["model"]["norm"]["mean"], expected, atol=1e-5)


def test_a_split_batch_is_cut_into_micro_batches_without_moving_a_row():
  mesh, batch = sharding.make_mesh(), toy_batch(64)
  alone, _ = gradient_and_log(toy(1), batch)
  split, _ = gradient_and_log(toy(PARTS), batch, mesh)
  assert differ(alone, split) < 1e-5
  procedure, whole = toy(PARTS), sharding.replicated(mesh)
  state = jax.jit(procedure.init, out_shardings=whole)()
  step = jax.jit(procedure.train_step, out_shardings=whole)
  text = step.lower(state, sharding.global_batch(batch, mesh)).compile().as_text()
  found = re.findall(r"\b(all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(", text)
  assert set(found) == {"all-reduce"}


@pytest.mark.slow
def test_micro_batches_save_memory():
  def temporary(accumulate):
    procedure = procedures.from_config(debug_config(accumulate=accumulate))
    state = jax.eval_shape(procedure.init)
    compiled = jax.jit(procedure.train_step).lower(state, noise_batch(size=32)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(4) < 0.6 * temporary(1)


def covering_rows(split, count=64):
  """The first rows, but such that every class and every unit is on and off somewhere."""
  batch = split.batch(np.arange(len(split)))
  expression, au = batch["labels"]["expression"], batch["labels"]["au"]
  needed = np.concatenate([expression, au, 1 - au], 1) > 0
  chosen: list[int] = []
  for column in needed.T:
    if not column[chosen].any():
      chosen.append(int(np.flatnonzero(column)[0]))
  chosen += [row for row in range(len(split)) if row not in chosen]
  return np.array(sorted(chosen[:count]))


@pytest.mark.slow
def test_the_flagship_learns_64_faces_of_every_class_and_unit_by_heart(tiny_faces):
  steps = 150
  config = debug_config(
    steps=steps,
    optimizer__warmup_steps=20,
    optimizer__weight_decay=0.0,
    model__decoder__dropout_rate=0.0,
    model__encoder__drop_path_rate=0.0,
    procedure__ema_decay=0.0,
    augment=QUIET,
  )
  build = records.builder("synthetic_faces", "tiny", tiny_faces)
  split = records.records(build, "train", config["labels"], 112)
  batch = split.batch(covering_rows(split))
  assert batch["labels"]["expression"].any(0).all()
  assert batch["labels"]["au"].any(0).all()
  procedure = procedures.from_config(config)
  step = jax.jit(procedure.train_step, donate_argnums=0)
  state = jax.jit(procedure.init)()
  for _ in range(steps):
    state, _ = step(state, {k: v for k, v in batch.items() if k != "index"})
  outputs = jax.jit(procedure.predict)(state.params, state.model_state, batch["image"])
  scoring = evaluate.Scoring(config["labels"])
  states = {k: metrics.to_host(v) for k, v in scoring.states(outputs, batch).items()}
  scores = scoring.scores(states)
  assert scores["p_mtl"] > 2.9, scores
