"""Co-training: what the networks are to agree on, and that one alone has nobody to agree with."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from scipy import special
from scipy.spatial import distance

from affjax import augment, optim, paths
from affjax.models import affect, ensembles
from affjax.procedures import co_training, supervised
from scripts import measure_co_training

QUIET = dict(
  flip_rate=0.0, scale=0.0, shift=0.0, brightness=0.0, contrast=0.0, cast=0.0, grey_rate=0.0,
  erase_rate=0.0,
)  # fmt: skip
CLASSES = 6
SECTIONS = dict(
  encoder=dict(name="vit.ViT", variant="mu/8", width=16, depth=1, num_heads=2),
  decoder=dict(name="decoders.Linear"),
  outputs=dict(va=2, expression=CLASSES),
  image_size=16,
)
MASKED = SECTIONS | dict(encoder=SECTIONS["encoder"] | dict(mask_rate=0.5))
LOSSES = dict(va=dict(name="losses.ccc_loss"), expression=dict(name="losses.cross_entropy"))
SAM, PARTS = dict(sam_radius=0.1), dict(accumulate=2)
# The optimiser's state is the gradient.
GRADIENT = optim.Optimizer(optax.trace(decay=0.0), lambda step: 0.0)


def ensemble(members, sections):
  return lambda rngs: ensembles.Ensemble(members=members, **sections, rngs=rngs)


def made(agreement=1.0, members=2, sections=SECTIONS, **options):
  given = dict(
    image_size=16, losses=LOSSES, optimizer=GRADIENT, augment=QUIET, seed=0, weighting="simple"
  )
  given |= dict(make_model=ensemble(members, sections)) | options
  return co_training.CoTraining(agreement=agreement, **given)


def batch(size=8, labelled=8):
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (size, 16, 16, 3), np.uint8),
    "labels": {
      "va": rng.uniform(-1, 1, (size, 2)).astype(np.float32),
      "expression": np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, size)],
    },
    "mask": {
      "va": np.ones((size, 2), np.float32),
      "expression": (np.arange(size) < labelled).astype(np.float32),
    },
  }


def drawn(procedure):
  """Its first state, with heads far enough from 0 for the networks to differ."""
  state = jax.jit(procedure.init)()
  leaves, tree = jax.tree.flatten(state.params["model"])
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
  return state.replace(params=state.params | {"model": jax.tree.unflatten(tree, moved)})


def step(procedure, state, seen):
  return jax.device_get(jax.jit(procedure.train_step)(state, seen))


def gradient(after):
  return paths.named(after.opt_state.trace)


@pytest.mark.parametrize(
  "options", [{}, *(pytest.param(x, marks=pytest.mark.slow) for x in (SAM, PARTS))]
)
def test_one_network_learns_as_by_supervised_learning_to_the_bit(options):
  common = dict(image_size=16, losses=LOSSES, augment=QUIET, seed=0, **options)
  optimizer = optim.adamw(steps=9, learning_rate=1e-2)
  one = made(members=1, sections=MASKED, optimizer=optimizer, **options)
  plain = supervised.Supervised(
    make_model=lambda rngs: affect.AffectModel(**MASKED, rngs=rngs), optimizer=optimizer, **common
  )
  states, logs = [], []
  for procedure in (one, plain):
    state, update = jax.jit(procedure.init)(), jax.jit(procedure.train_step)
    for _ in range(3):
      state, logged = update(state, batch())
    states.append(state)
    logs.append(jax.device_get(logged))
  assert logs[0] == logs[1]
  found, expected = (paths.named(state.params) for state in states)
  renamed = {name.replace("model/members/0/", "model/"): x for name, x in found.items()}
  assert renamed.keys() == expected.keys()
  for name, x in expected.items():
    np.testing.assert_array_equal(renamed[name], x, err_msg=name)


@functools.cache
def pair():
  """Of two networks without masks: the procedure, its state and what a step makes of it."""
  procedure = made()
  state = drawn(procedure)
  return procedure, state, *step(procedure, state, batch(labelled=6))


def networks(procedure, state, images):
  """What each of the networks gives for whole images, called by itself."""

  @jax.jit
  def run(model, images):
    made = nnx.merge(procedure.graphdef, model, {})
    return [member(augment.preprocess(images, 16)) for member in made.members]

  return jax.device_get(run(state.params["model"], images))


def cross_entropy(logits, target):
  return -(target * special.log_softmax(np.float64(logits), 1)).sum(1).mean()


def test_the_loss_is_the_networks_mean_and_the_divergence_of_their_distributions():
  procedure, state, _, logged = pair()
  seen = batch(labelled=6)
  first, second = networks(procedure, state, seen["image"])
  p, q = (special.softmax(np.float64(x["expression"][:6]), 1) for x in (first, second))
  apart = np.mean([distance.jensenshannon(*rows) ** 2 for rows in zip(p, q, strict=True)])
  assert apart > 0.01
  assert logged["loss/agreement"] == pytest.approx(apart, rel=1e-4)
  target = seen["labels"]["expression"][:6]
  each = [cross_entropy(of["expression"][:6], target) for of in (first, second)]
  assert logged["loss/expression"] == pytest.approx(np.mean(each), rel=1e-5)
  expected = logged["loss/expression"] + logged["loss/va"] + logged["loss/agreement"]
  assert logged["loss"] == pytest.approx(expected, rel=1e-5)
  # Theirs: elementwise terms, averaged over rows and classes, times 100.
  middle = (p + q) / 2
  terms = 0.5 * (p * np.log(p / middle) + q * np.log(q / middle))
  assert 100 / CLASSES * apart == pytest.approx(100 * terms.mean(), rel=1e-5)


def test_agreement_moves_both_networks_and_nothing_but_expressions():
  _, state, after, _ = pair()
  apart, _ = step(made(agreement=0.0), state, batch(labelled=6))
  with_it, without = gradient(after), gradient(apart)
  alone = {name: with_it[name] - without[name] for name in with_it}
  for i in range(2):
    for part in ("encoder/stem/dense/kernel", "decoder/heads/dense/expression/kernel"):
      assert np.abs(alone[f"model/members/{i}/{part}"]).max() > 1e-4
    np.testing.assert_allclose(
      alone[f"model/members/{i}/decoder/heads/dense/va/kernel"], 0, atol=1e-6
    )
  assert all(np.abs(x).max() < 1e-6 for name, x in alone.items() if "log_variance" in name)


def test_twins_that_see_the_same_agree_and_those_behind_masks_do_not():
  for sections, differ in ((SECTIONS, False), (MASKED, True)):
    procedure = made(sections=sections)
    state = drawn(procedure)
    first = state.params["model"]["members"][0]
    twins = state.replace(params=state.params | {"model": {"members": {0: first, 1: first}}})
    _, logged = step(procedure, twins, batch())
    assert (logged["loss/agreement"] > 1e-3) == differ
    assert differ or logged["loss/agreement"] == pytest.approx(0, abs=1e-7)


def test_a_row_without_an_expression_has_no_say_in_the_agreement():
  procedure, state, _, logged = pair()
  seen = batch(labelled=6)
  seen["image"][6:] = 255 - seen["image"][6:]
  _, changed = step(procedure, state, seen)
  assert changed["loss/va"] != logged["loss/va"]
  assert changed["loss/agreement"] == pytest.approx(logged["loss/agreement"], rel=1e-6)
  seen["mask"]["expression"][:] = 0
  _, none = step(procedure, state, seen)
  assert none["loss/agreement"] == 0


def test_micro_batches_have_the_gradient_and_the_losses_of_the_whole_batch():
  _, state, after, logged = pair()
  pieces, of_pieces = step(made(accumulate=4), state, batch(labelled=6))
  assert of_pieces.keys() == logged.keys()
  for name, value in logged.items():
    assert of_pieces[name] == pytest.approx(value, rel=1e-5), name
  found = gradient(pieces)
  for name, x in gradient(after).items():
    np.testing.assert_allclose(found[name], x, rtol=1e-4, atol=1e-5, err_msg=name)


def test_evaluation_sees_whole_images_and_gives_the_mean():
  procedure = made(sections=MASKED)
  state = drawn(procedure)
  predict = jax.jit(procedure.predict)
  seen = batch()["image"]
  found = predict(state.params, state.model_state, seen)
  first, second = networks(procedure, state, seen)
  assert found.keys() == {"va", "expression"}
  for name, x in found.items():
    np.testing.assert_allclose(x, (first[name] + second[name]) / 2, atol=1e-5)
    np.testing.assert_array_equal(x, predict(state.params, state.model_state, seen)[name])


def test_a_network_that_is_frozen_teaches_the_other():
  groups = dict(teacher=dict(pattern="members/0", freeze=True))
  optimizer = optim.adamw(steps=9, learning_rate=1e-2, groups=groups)
  procedure = made(optimizer=optimizer)
  state = drawn(procedure)
  after, _ = step(procedure, state, batch())
  before, now = (paths.named(x.params) for x in (state, after))
  still = {name for name, x in before.items() if (x == now[name]).all()}
  assert still == {name for name in before if "members/0/" in name}


def test_the_planted_views_differ_in_what_says_nothing_and_those_of_the_control_in_nothing():
  for own in (True, False):
    batches = measure_co_training.planted(100, own)
    cut = lambda x: x.reshape(-1, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(len(x), 16, 48)
    patches = cut(batches["report"]["image"].astype(np.float64))
    assert (patches.std(1).max() > 0) == own
    # The direction of an expression is that of the mean over its images, in either.
    shown = batches["report"]["labels"]["expression"].argmax(1)
    means = np.stack([patches[shown == k].mean((0, 1)) for k in range(6)]) / 127.5 - 1
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 0.2, atol=0.05)
    cosines = means @ means.T / 0.2**2
    assert np.abs(cosines - np.eye(6)).max() < 0.45


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(agreement=-1.0), "procedure.agreement=-1.0: use a number >= 0"),
    (dict(agreement=float("nan")), "agreement=nan"),
    (dict(agreement="1"), "agreement='1'"),
    (dict(radius=1.0), r"takes no \['radius'\]; it takes \['agreement', 'make_model'"),
    (
      dict(make_model=lambda rngs: affect.AffectModel(**SECTIONS, rngs=rngs)),
      "needs several networks: use config.model.name='ensembles.Ensemble'",
    ),
    (
      dict(losses=dict(va=LOSSES["va"]), sections=SECTIONS | dict(outputs=dict(va=2))),
      "agreement=1.0 is on expressions, and config.labels has none: use 0",
    ),
  ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(options, message):
  with pytest.raises(ValueError, match=message):
    made(**options)
