"""Learning itself: what the step must never do, and that it can learn everything there is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from flax import nnx

from affjax import cost, experiment, optim, procedures, sharding
from affjax.models import convolutions
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
  """A dense layer and a head for each task, or two of them: the other for its log variance."""

  def __init__(self, *, dropout_rate=0.0, norm=False, heteroscedastic=False, rngs):
    self.dense = nnx.Linear(8 * 8 * 3, 32, rngs=rngs)
    self.norm = nnx.BatchNorm(32, momentum=0.5, rngs=rngs) if norm else None
    self.dropout = nnx.Dropout(dropout_rate)
    sizes = {"va": 2, "expression": 3, "au": 4}
    if heteroscedastic:
      sizes |= {"va/log_variance": 2, "expression/log_variance": 1, "au/log_variance": 4}
    self.heads = nnx.Dict({task: nnx.Linear(32, n, rngs=rngs) for task, n in sizes.items()})

  def __call__(self, images, *, train=False, rngs=None):
    x = jnp.tanh(self.dense(images.reshape(len(images), -1)))
    if self.norm is not None:
      x = self.norm(x, use_running_average=not train)
    x = self.dropout(x, deterministic=not train, rngs=rngs)
    return {task: head(x) for task, head in self.heads.items()}


TOY_LOSSES = {
  "va": {"name": "losses.ccc_loss"},
  "expression": {"name": "losses.cross_entropy", "class_weights": [1.0, 2.0, 0.5]},
  "au": {"name": "losses.binary_focal_cross_entropy"},
}
LIKELIHOODS = {
  "va": {"name": "losses.mean_squared_error"},
  "expression": {"name": "losses.cross_entropy"},
  "au": {"name": "losses.binary_cross_entropy"},
}
UNCERTAIN = {
  "va": {"name": "losses.gaussian_nll"},
  "expression": {"name": "losses.heteroscedastic_cross_entropy"},
  "au": {"name": "losses.heteroscedastic_binary_cross_entropy", "samples": 3},
}


def toy(accumulate=1, procedure=None, **model):
  """Its procedure; the optimiser's state is the gradient."""
  options = dict(
    losses=TOY_LOSSES,
    optimizer=optim.Optimizer(optax.trace(decay=0.0), lambda step: 0.0),
    augment=QUIET,
    seed=0,
    accumulate=accumulate,
  )
  return supervised.Supervised(
    make_model=lambda rngs: Toy(**model, rngs=rngs), image_size=8, **options | (procedure or {})
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


class Convolutional(nnx.Module):
  """Two convolutions with batch norms, then a head for one task."""

  def __init__(self, rngs):
    options = dict(norm="batch", momentum=0.5, dtype=jnp.float32, rngs=rngs)
    self.stem = convolutions.Convolution((3, 3, 3, 8), stride=2, **options)
    self.last = convolutions.Convolution((8, 8), **options)
    self.head = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, images, *, train=False, rngs=None):
    maps = self.last(jax.nn.relu(self.stem(images, train=train)), train=train)
    return {"expression": self.head(maps.mean((1, 2)))}


def convolutional(groups):
  """A procedure with groups of parameters, and a batch for it."""
  procedure = supervised.Supervised(
    make_model=Convolutional,
    image_size=8,
    losses={"expression": {"name": "losses.cross_entropy"}},
    optimizer=optim.adamw(steps=9, learning_rate=0.1, groups=groups),
    augment=QUIET,
    seed=0,
  )
  batch = toy_batch()
  return procedure, batch | {k: {"expression": batch[k]["expression"]} for k in ("labels", "mask")}


@pytest.mark.parametrize("pattern", ["stem", "(stem|last)", None])
def test_of_a_frozen_convolution_the_statistics_are_frozen_too(pattern):
  groups = {"low": dict(pattern=pattern, freeze=True)} if pattern else {}
  procedure, batch = convolutional(groups)
  state = jax.jit(procedure.init)()
  after, _ = jax.jit(procedure.train_step)(state, batch)
  for name in ("stem", "last"):
    still = pattern is not None and name in pattern
    for values in ("params", "model_state"):
      old, new = (jax.tree.leaves(getattr(s, values)["model"][name]) for s in (state, after))
      same = [np.array_equal(x, y) for x, y in zip(old, new, strict=True)]
      assert same == [still] * len(same)


def test_stages_thaw_one_after_the_other_with_their_statistics():
  begins = {"stem": 4, "last": 2, "head": 0}
  groups = {n: dict(pattern=f"model/{n}", thaw=step) for n, step in begins.items() if step}
  procedure, batch = convolutional(groups)
  step = jax.jit(procedure.train_step)
  state = jax.jit(procedure.init)()
  for number in range(6):
    before, (state, metrics) = state, step(state, batch)
    for name, begin in begins.items():
      for values in ("params", "model_state"):
        old, new = (getattr(s, values)["model"].get(name, {}) for s in (before, state))
        same = jax.tree.leaves(jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), old, new))
        # Of a group that just thaws the first update is that of a warm-up from zero or the peak.
        assert same == [number < begin] * len(same), (number, name, values)
    assert np.isfinite(metrics["loss"])


def test_a_stage_that_is_still_frozen_costs_no_way_back():
  batch = convolutional({})[1]

  def flops(groups):
    procedure = convolutional(groups)[0]
    return cost.flops(procedure._from(0)._update, jax.eval_shape(procedure.init), batch)

  later = {"low": dict(pattern="(stem|last)", thaw=2)}
  never = {"low": dict(pattern="(stem|last)", freeze=True)}
  assert flops(later) < 1.02 * flops(never) < 0.7 * flops({})


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


# Weights of the tasks.


def without(batch, task, dimension=None):
  """The batch, a task or a dimension of it not labelled."""
  mask = {name: value.copy() for name, value in batch["mask"].items()}
  mask[task][(slice(None), dimension) if dimension is not None else slice(None)] = 0
  return batch | {"mask": mask}


@pytest.mark.parametrize("weighting", ["simple", "kendall", "liebel", "equal", "predicted"])
def test_what_is_not_labelled_has_exactly_no_gradient_in_any_form(weighting):
  options = dict(losses=LIKELIHOODS, weighting=weighting, per_dimension=weighting != "equal")
  if weighting == "predicted":
    options = dict(losses=UNCERTAIN)
  procedure = toy(procedure=options, heteroscedastic=weighting == "predicted")
  state = jax.jit(procedure.init)()
  step = jax.jit(procedure.train_step)
  learned = ["va", "expression", "au"] if weighting not in ("equal", "predicted") else []
  assert set(state.params.get("log_variance", {})) == set(learned)
  batch = toy_batch()
  for task, dimension in (("va", None), ("expression", None), ("au", None), ("va", 1)):
    after, logged = step(state, without(batch, task, dimension))
    gradient = jax.device_get(after.opt_state.trace)
    own = (..., slice(None) if dimension is None else dimension)
    for name, head in gradient["model"]["heads"].items():
      if name.startswith(task):
        assert (head["kernel"][own] == 0).all(), name
        assert (head["bias"][own] == 0).all(), name
      else:
        assert (head["kernel"] != 0).any(), name
    for other in learned:
      s = gradient["log_variance"][other]
      here = np.full(s.shape, other == task)
      if dimension is not None and other == task:
        here = np.arange(2) == dimension
      np.testing.assert_array_equal(s == 0, here, other)
    assert (logged[f"weight/{task}"] == 0) == (dimension is None)
  batch["mask"] = jax.tree.map(np.zeros_like, batch["mask"])
  after, logged = step(state, batch)
  assert logged["loss"] == 0
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(after.opt_state.trace))


def test_weights_and_losses_are_logged_for_each_task_and_dimension():
  procedure = toy(procedure=dict(losses=LIKELIHOODS, weighting="kendall", per_dimension=True))
  state = jax.jit(procedure.init)()
  assert state.params["log_variance"]["va"].shape == (2,)
  state.params["log_variance"] = {"va": jnp.array([0.4, -1.0]), "expression": 0.2, "au": -0.1}
  _, logged = jax.jit(procedure.train_step)(state, toy_batch())
  expected = {
    "va/valence": np.exp(-0.4) / 2, "va/arousal": np.exp(1.0) / 2,
    "va": (np.exp(-0.4) + np.exp(1.0)) / 4, "expression": np.exp(-0.2), "au": np.exp(0.1),
  }  # fmt: skip
  assert {n.removeprefix("weight/") for n in logged if n.startswith("weight/")} == set(expected)
  for name, weight in expected.items():
    np.testing.assert_allclose(logged[f"weight/{name}"], weight, rtol=1e-5)
  each = [logged["loss/va/valence"], logged["loss/va/arousal"]]
  np.testing.assert_allclose(logged["loss/va"], np.mean(each), rtol=1e-6)
  assert each[0] != each[1]
  s, loss = [0.4, -1.0, 0.2, -0.1], [*each, logged["loss/expression"], logged["loss/au"]]
  terms = [a * np.exp(-v) * x + v / 2 for a, v, x in zip([0.5, 0.5, 1, 1], s, loss, strict=True)]
  np.testing.assert_allclose(logged["loss"], np.mean(terms[:2]) + sum(terms[2:]), rtol=1e-5)


def test_equal_weights_keep_no_log_variance_and_sum_the_losses():
  procedure = toy(procedure=dict(weighting="equal"))
  state = jax.jit(procedure.init)()
  assert list(state.params) == ["model"]
  _, logged = jax.jit(procedure.train_step)(state, toy_batch())
  tasks = ("va", "expression", "au")
  np.testing.assert_allclose(logged["loss"], sum(logged[f"loss/{t}"] for t in tasks), rtol=1e-6)
  assert [logged[f"weight/{t}"] for t in tasks] == [1, 1, 1]


@pytest.mark.parametrize("per_dimension", [False, True])
def test_log_variances_are_not_decayed(per_dimension):
  decaying = optim.adamw(steps=10, learning_rate=0.1, schedule="constant", weight_decay=1.0)
  procedure = toy(procedure=dict(optimizer=decaying, per_dimension=per_dimension))
  state = jax.jit(procedure.init)()
  state = state.replace(
    params=state.params
    | {"log_variance": jax.tree.map(lambda s: s + 0.7, state.params["log_variance"])}
  )
  batch = toy_batch()
  batch["mask"] = jax.tree.map(np.zeros_like, batch["mask"])
  after, _ = jax.jit(procedure.train_step)(state, batch)
  same = lambda a, b: bool((np.asarray(a) == np.asarray(b)).all())
  assert all(jax.tree.leaves(jax.tree.map(
    same, after.params["log_variance"], state.params["log_variance"])))  # fmt: skip
  kernel = lambda state: state.params["model"]["dense"]["kernel"]
  np.testing.assert_allclose(kernel(after), 0.9 * kernel(state), rtol=1e-5)


@pytest.mark.parametrize(
  ("options", "model", "said"),
  [
    (dict(weighting="kendal"), {}, "config.procedure.weighting='kendal': use one of simple, kend"),
    (
      dict(weighting="kendall"),
      {},
      "config.procedure.weighting='kendall' with config.losses.va=losses.ccc_loss: that is no"
      " likelihood. Use losses.mean_squared_error, .* or weighting 'simple'",
    ),
    (
      dict(weighting="kendall", losses=TOY_LOSSES | {"va": LIKELIHOODS["va"]}),
      {},
      "config.losses.au=losses.binary_focal_cross_entropy: that is no likelihood",
    ),
    (
      dict(losses=TOY_LOSSES | {"va": UNCERTAIN["va"]}),
      {},
      "config.losses.va=losses.gaussian_nll needs .* set config.model.decoder.heteroscedastic=True",
    ),
    (
      {},
      dict(heteroscedastic=True),
      "gives log variances of va, expression, au and no loss uses them: set config.model.decoder"
      ".heteroscedastic=False",
    ),
    (dict(weighting="equal", per_dimension=True), {}, "per_dimension=True, but va has no learned"),
    (
      dict(per_dimension=True, losses={"au": TOY_LOSSES["au"]}),
      {},
      "config.procedure.per_dimension=True, but va has no learned weight",
    ),
    (dict(sam_radius=-0.1), {}, "config.procedure.sam_radius=-0.1: use a number >= 0"),
    (dict(sam_radius="0.1"), {}, "config.procedure.sam_radius='0.1'"),
  ],
)
def test_options_that_do_not_go_together_are_one_line_before_anything_is_compiled(
  options, model, said
):
  with pytest.raises(ValueError, match=said) as error:
    toy(procedure=options, **model)
  assert "\n" not in str(error.value)


def test_the_flagship_refuses_kendall_with_its_ccc_loss():
  with pytest.raises(ValueError, match="weighting='kendall' with config.losses.va=losses.ccc_loss"):
    procedures.from_config(debug_config(procedure__weighting="kendall"))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(augment__flip_rate=2), "augment.augment: flip_rate=2.0: use a number from 0 to 1"),
    (dict(augment__shift=-0.1), "augment.augment: shift=-0.1: use a number from 0 on"),
    (dict(procedure__ema_decay=1.0), "ema_decay=1.0: use a share from 0 up to, but not, 1"),
    (dict(procedure__mixup_alpha=-1), "mixup_alpha=-1.0: use a number from 0 on"),
  ],
)
def test_numbers_that_cannot_be_are_refused_before_anything_is_compiled(changes, said):
  with pytest.raises(ValueError, match=said):
    procedures.from_config(debug_config(**changes))


class Grey(nnx.Module):
  """Lines of the mean grey level: valence and arousal, and their log variances if wanted."""

  def __init__(self, *, heteroscedastic, rngs):
    self.va = nnx.Linear(1, 2, rngs=rngs)
    self.s = nnx.Linear(1, 2, rngs=rngs) if heteroscedastic else None

  def __call__(self, images, *, train=False, rngs=None):
    grey = images.mean((1, 2, 3))[:, None]
    uncertain = {} if self.s is None else {"va/log_variance": self.s(grey)}
    return {"va": self.va(grey)} | uncertain


def learn_grey(noise, steps=500, **options):
  """The state after learning va from grey levels; `noise` of a level in [-1, 1] is [rows, 2]."""
  rng = np.random.default_rng(0)
  pixel = rng.integers(0, 256, 1024)
  level = pixel / 127.5 - 1
  va = np.stack([0.3 * level, 0.1 - 0.2 * level], 1) + noise(level) * rng.normal(size=(1024, 2))
  batch = {
    "image": np.broadcast_to(pixel[:, None, None, None], (1024, 4, 4, 3)).astype(np.uint8),
    "labels": {"va": va.astype(np.float32)},
    "mask": {"va": np.ones((1024, 2), np.float32)},
  }
  loss = options.pop("loss")
  procedure = supervised.Supervised(
    make_model=lambda rngs: Grey(heteroscedastic=loss == "losses.gaussian_nll", rngs=rngs),
    image_size=4,
    losses={"va": {"name": loss}},
    optimizer=optim.Optimizer(optax.adam(0.03), lambda step: 0.03),
    augment=QUIET,
    seed=0,
    **options,
  )
  step = lambda _, state: procedure.train_step(state, batch)[0]
  learn = jax.jit(lambda: jax.lax.fori_loop(0, steps, step, procedure.init()))
  return procedure, learn()


def test_kendall_finds_the_noise_that_was_planted_in_each_dimension():
  noise = lambda level: np.array([[0.3, 0.1]])
  options = dict(loss="losses.mean_squared_error", weighting="kendall", per_dimension=True)
  _, state = learn_grey(noise, **options)
  sigma = np.exp(state.params["log_variance"]["va"] / 2)
  np.testing.assert_allclose(sigma, [0.3, 0.1], rtol=0.1)
  assert sigma[0] / sigma[1] == pytest.approx(3, rel=0.15)


def test_predicted_variances_find_the_noise_that_was_planted_in_each_image():
  log_sigma = lambda level: np.stack([-2 + level, -1.5 - 0.5 * level], 1)
  procedure, state = learn_grey(lambda level: np.exp(log_sigma(level)), loss="losses.gaussian_nll")
  assert list(state.params) == ["model"]  # no weight beside them
  pixel = np.array([0, 128, 255], np.uint8)
  images = np.broadcast_to(pixel[:, None, None, None], (3, 4, 4, 3))
  outputs = procedure.predict(state.params, state.model_state, images)
  expected = log_sigma(pixel / 127.5 - 1)
  np.testing.assert_allclose(outputs["va/log_variance"] / 2, expected, atol=0.15)


def test_predicted_variances_train_alike_in_micro_batches_and_depend_on_the_step_alone():
  options = dict(losses=UNCERTAIN | {"au": TOY_LOSSES["au"]})
  batch = toy_batch()
  whole, logged = gradient_and_log(toy(1, options, heteroscedastic=True), batch)
  pieces, _ = gradient_and_log(toy(PARTS, options, heteroscedastic=True), batch)
  assert differ(whole, pieces) < 1e-5
  assert whole["log_variance"].keys() == {"au"}  # a task has one kind of uncertainty
  assert logged["weight/va"] == logged["weight/expression"] == 1
  each = [logged["sigma/va/valence"], logged["sigma/va/arousal"]]
  np.testing.assert_allclose(logged["sigma/va"], np.mean(each), rtol=1e-6)
  assert logged["sigma/expression"] > 0
  assert "sigma/au" not in logged
  procedure = toy(1, options, heteroscedastic=True)
  state, step = jax.jit(procedure.init)(), jax.jit(procedure.train_step)
  noisy = lambda number: step(state.replace(step=jnp.int32(number)), batch)[1]["loss/expression"]
  assert noisy(0) == noisy(0) == logged["loss/expression"] != noisy(1)


# Sharpness-aware minimisation.

RADIUS = 0.3
MOVING = QUIET | dict(flip_rate=0.5, brightness=0.3)


def gradient_at(procedure, params, batch):
  state = jax.jit(procedure.init)()
  state = state.replace(params=params or state.params)
  after, _ = jax.jit(procedure.train_step)(state, batch)
  return jax.device_get((state.params, after.opt_state.trace, after.model_state))


@pytest.mark.parametrize("accumulate", [1, PARTS])
def test_sam_takes_the_gradient_a_radius_up_the_slope_of_the_same_view_and_dropout(accumulate):
  build = lambda radius: toy(
    accumulate, dict(augment=MOVING, sam_radius=radius), dropout_rate=0.5, norm=True
  )
  batch = toy_batch()
  params, plain, statistics = gradient_at(build(0.0), None, batch)
  _, aware, of_aware = gradient_at(build(RADIUS), None, batch)
  norm = optax.global_norm(plain["model"])
  above = jax.tree.map(lambda p, g: p + RADIUS / norm * g, params["model"], plain["model"])
  _, expected, _ = gradient_at(build(0.0), params | {"model": above}, batch)
  assert differ(aware["model"], expected["model"]) < 1e-4
  assert differ(aware["model"], plain["model"]) > 0.02
  # What is not the network's is as without.
  close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  jax.tree.map(close, aware["log_variance"], plain["log_variance"])
  jax.tree.map(close, of_aware, statistics)


def test_sam_of_a_vanishing_radius_is_the_base_step():
  batch = toy_batch()
  _, plain, _ = gradient_at(toy(), None, batch)
  distances = []
  for radius in (1e-1, 1e-2, 1e-3):
    _, aware, _ = gradient_at(toy(procedure=dict(sam_radius=radius)), None, batch)
    distances.append(differ(plain, aware))
  assert distances[0] > 5 * distances[1] > 25 * distances[2] > 0


def test_sam_in_micro_batches_is_that_of_the_whole_batch():
  batch, options = toy_batch(), dict(sam_radius=RADIUS)
  whole, logged = gradient_and_log(toy(1, options), batch)
  pieces, _ = gradient_and_log(toy(PARTS, options), batch)
  assert differ(whole, pieces) < 1e-5
  _, plain = gradient_and_log(toy(1), batch)
  assert logged["loss"] == pytest.approx(plain["loss"], rel=1e-6)  # of the parameters as they are


def test_sam_stays_where_there_is_no_slope():
  batch = toy_batch()
  batch["mask"] = jax.tree.map(np.zeros_like, batch["mask"])
  gradient, _ = gradient_and_log(toy(1, dict(sam_radius=RADIUS)), batch)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  ("argument", "changes"),
  [
    ("", {}),
    ("", {"model__decoder__position": "decoder", "model__decoder__layout": "elementary"}),
    ("", {"procedure__weighting": "kendall", "losses__va": {"name": "losses.gaussian_nll"},
          "model__decoder__heteroscedastic": True}),
    ("", {"accumulate": 2, "procedure__sam_radius": 0.05, "procedure__mixup_alpha": 0.2}),
    ("plain=true", {"procedure__ema_decay": 0.0}),
    ("data=s_aff_wild2,variant=B/16", {"dtype": "bfloat16"}),
  ],
)  # fmt: skip
def test_a_step_gives_the_types_that_it_takes_so_it_is_compiled_once(argument, changes):
  config = debug_config(argument, **changes)
  procedure = procedures.from_config(config)
  before = jax.eval_shape(procedure.init)
  after, _ = jax.eval_shape(procedure.train_step, before, experiment.batch_shapes(config))
  # Weak types count: of a Python number's type, not of the array's own.
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
  assert types(after) == types(before)
