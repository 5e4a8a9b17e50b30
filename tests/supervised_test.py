"""Learning itself: what the step must never do, and that it can learn everything there is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import debug_config

from affjax import evaluate, metrics, procedures
from affjax.data import records

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
  steps = 350
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
