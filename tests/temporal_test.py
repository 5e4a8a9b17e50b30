"""What time is worth to a model: gaps say nothing, neighbours do, and the twin sees none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from flax import nnx

from affjax import experiment, optim, procedures, state
from affjax.models import affect, features, layers, temporal
from affjax.procedures import supervised
from configs import temporal as config_file

BATCH, TIME, INPUT = 3, 9, 6
SMALL = dict(input_width=INPUT, width=8, depth=2)
KINDS = {
  "gru": lambda: temporal.GRU(**SMALL, rngs=nnx.Rngs(0)),
  "one-way gru": lambda: temporal.GRU(**SMALL, bidirectional=False, rngs=nnx.Rngs(0)),
  "transformer": lambda: temporal.Transformer(**SMALL, num_heads=2, rngs=nnx.Rngs(0)),
  "framewise": lambda: temporal.FrameWise(**SMALL, rngs=nnx.Rngs(0)),
}


@pytest.fixture(params=KINDS)
def model(request):
  return KINDS[request.param]()


def frames(seed=0):
  return np.random.default_rng(seed).normal(size=(BATCH, TIME, INPUT)).astype(np.float32)


PRESENT = np.random.default_rng(1).random((BATCH, TIME)) < 0.7
ALL = np.ones((BATCH, TIME), bool)


def moved(model, changed, present=ALL):
  """[batch, time] whether what comes out changes with the frames in `changed`."""
  before, after = frames(), np.where(changed[..., None], frames(2) * 100, frames())
  return np.abs(model(after, present) - model(before, present)).max(-1) > 1e-6


def test_a_frame_that_is_not_there_has_no_influence(model):
  assert 0 < PRESENT.sum() < PRESENT.size
  assert not moved(model, ~PRESENT, PRESENT)[PRESENT].any()
  assert np.isfinite(model(frames(), PRESENT & False)).all()


def test_clips_do_not_see_each_other(model):
  one = np.arange(BATCH)[:, None] == np.full((1, TIME), 1)
  np.testing.assert_array_equal(moved(model, one).any(1), [False, True, False])


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_a_frame_is_seen_from_both_sides(kind):
  middle = np.broadcast_to(np.arange(TIME) == TIME // 2, (BATCH, TIME))
  assert moved(KINDS[kind](), middle).all()


def test_the_twin_sees_each_frame_alone_and_at_any_time():
  model = KINDS["framewise"]()
  np.testing.assert_array_equal(moved(model, PRESENT), PRESENT)
  order = np.random.default_rng(0).permutation(TIME)
  found = model(frames()[:, order], ALL)
  np.testing.assert_allclose(found, model(frames(), ALL)[:, order], atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "one-way gru", "transformer"])
def test_the_order_of_the_frames_matters_to_the_others(kind):
  model = KINDS[kind]()
  there = model(frames()[:, ::-1], ALL)[:, ::-1]
  assert np.abs(there - model(frames(), ALL)).max() > 0.01


# The GRU.


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_gru_is_flaxs_where_every_frame_is_there(bidirectional):
  model = temporal.GRU(**SMALL, bidirectional=bidirectional, rngs=nnx.Rngs(3))
  x = jnp.asarray(frames())
  for cells in model.layers:
    ways = [
      nnx.RNN(cell, reverse=way == 1, keep_order=True)(x, rngs=nnx.Rngs(0))
      for way, cell in enumerate(cells)
    ]
    x = jnp.concatenate(ways, -1)
  np.testing.assert_allclose(model(frames(), ALL), x, atol=1e-6)


def test_a_gap_leaves_the_state_of_the_gru_as_it_is():
  model = KINDS["gru"]()
  there = [0, 1, 4, 5, 6]
  present = np.broadcast_to(np.isin(np.arange(TIME), there), (BATCH, TIME))
  found = model(frames(), present)[:, there]
  np.testing.assert_allclose(found, model(frames()[:, there], ALL[:, there]), atol=1e-6)


def test_the_one_way_gru_knows_nothing_of_what_comes():
  late = np.broadcast_to(np.arange(TIME) >= 4, (BATCH, TIME))
  np.testing.assert_array_equal(moved(KINDS["one-way gru"](), late), late)


# The transformer.


def test_a_transformer_that_sees_all_frames_is_made_of_the_blocks_of_images():
  model = KINDS["transformer"]()
  x = model.project(frames()) + temporal.positions(TIME, 8)[None]
  for block in model.blocks:
    plain = layers.Block(8, 2, rngs=nnx.Rngs(9))
    nnx.update(plain, nnx.state(block))
    x, _ = plain(x)
  np.testing.assert_allclose(model(frames(), ALL), model.norm(x), atol=1e-5)


def test_a_causal_transformer_knows_nothing_of_what_comes():
  model = temporal.Transformer(**SMALL, num_heads=2, causal=True, rngs=nnx.Rngs(0))
  late = np.broadcast_to(np.arange(TIME) >= 4, (BATCH, TIME))
  np.testing.assert_array_equal(moved(model, late), late)


def test_blocks_look_no_further_than_their_reach():
  model = temporal.Transformer(**SMALL, num_heads=2, reach=1, rngs=nnx.Rngs(0))
  first = np.broadcast_to(np.arange(TIME) == 0, (BATCH, TIME))
  near = np.broadcast_to(np.arange(TIME) <= 2, (BATCH, TIME))  # two blocks, one frame each
  np.testing.assert_array_equal(moved(model, first), near)


def test_positions_are_sines_and_cosines_of_the_place():
  found = temporal.positions(50, 8)
  angle = 17 / 10000 ** (2 * 3 / 8)
  assert found[17, 3] == pytest.approx(np.sin(angle), abs=1e-6)
  assert found[17, 7] == pytest.approx(np.cos(angle), abs=1e-6)
  assert len(np.unique(found.round(4), axis=0)) == 50


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda **o: temporal.GRU(width=7, **o), "width 7: use an even one"),
    (lambda **o: temporal.GRU(depth=0, **o), "depth 0: use"),
    (lambda **o: temporal.FrameWise(depth=65, **o), "depth 65: use"),
    (lambda **o: temporal.Transformer(reach=-1, **o), "reach -1: use"),
    (lambda **o: temporal.Transformer(width=8, num_heads=3, **o), "not a multiple of num_heads 3"),
    (lambda **o: features.Precomputed(image_size=8, width=0, rngs=o["rngs"]), "width 0: use 1"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make(input_width=INPUT, rngs=nnx.Rngs(0))


# In the model.

OUTPUTS = {"va": 2, "expression": 3, "au": 4}
VIT = dict(name="vit.ViT", variant="mu/8", width=16, depth=1, num_heads=2)


VECTORS = dict(name="features.Precomputed", width=7)
SECTIONS = {
  "": None,
  "gru": dict(name="temporal.GRU", width=8, dropout_rate=0.0),
  "transformer": dict(name="temporal.Transformer", width=8, dropout_rate=0.0),
  "framewise": dict(name="temporal.FrameWise", width=8, dropout_rate=0.0),
}


@functools.cache
def built(over_time, vectors=False):
  return affect.AffectModel(
    encoder=VECTORS if vectors else VIT,
    temporal=SECTIONS[over_time],
    decoder=dict(name="decoders.Linear"),
    outputs=OUTPUTS,
    image_size=16,
    rngs=nnx.Rngs(0),
  )


def clips_of_images(seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (2, 5, 16, 16, 3)).astype(np.float32)


THERE = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], bool)


def test_clips_of_a_model_without_time_are_its_images_one_by_one():
  model, images = built(""), clips_of_images()
  found, alone = model(images, THERE), model(images.reshape(10, 16, 16, 3))
  for task, size in OUTPUTS.items():
    assert found[task].shape == (2, 5, size)
    np.testing.assert_array_equal(found[task].reshape(10, size), alone[task])


def test_a_temporal_model_reads_the_means_of_the_frames_tokens():
  model, images = built("gru"), clips_of_images()
  tokens = model.encoder(images.reshape(10, 16, 16, 3)).mean(1).reshape(2, 5, 16)
  expected = model.decoder(model.temporal(tokens, THERE).reshape(10, 1, 8))
  for task, values in model(images, THERE).items():
    np.testing.assert_allclose(values.reshape(10, -1), expected[task], atol=1e-6)


def test_an_image_is_a_clip_of_one_frame():
  model, images = built("gru"), clips_of_images()[0]
  found, clips = model(images), model(images[:, None], np.ones((5, 1), bool))
  for task in OUTPUTS:
    np.testing.assert_allclose(found[task], clips[task][:, 0], atol=1e-6)


def test_attention_maps_of_the_frames_come_with_the_outputs():
  outputs, maps = built("gru")(clips_of_images(), THERE, attention=True)
  assert outputs["va"].shape == (2, 5, 2)
  assert maps["encoder"].shape == (1, 10, 2, 4, 4)
  assert maps["decoder"] == {}


def test_features_stand_in_for_an_encoder():
  vectors = np.random.default_rng(0).normal(5, 30, (2, 5, 7)).astype(np.float32)
  model = built("transformer", vectors=True)
  assert model.input_shape == (7,)
  np.testing.assert_array_equal(model.encoder(vectors[0])[:, 0], vectors[0])
  assert model(vectors, THERE)["au"].shape == (2, 5, 4)


def test_what_comes_over_time_is_standardised_by_the_frames_that_are_there():
  model = built.__wrapped__("gru", vectors=True)
  vectors = np.random.default_rng(0).normal(5, 30, (2, 5, 7)).astype(np.float32)
  expected = model(vectors, THERE, train=True)
  seen = vectors[THERE]
  np.testing.assert_allclose(model.standardise.mean, 0.1 * seen.mean(0), rtol=1e-4)
  np.testing.assert_allclose(model.standardise.var, 0.9 + 0.1 * seen.var(0), rtol=1e-4)
  model.standardise.mean[...], model.standardise.var[...] = seen.mean(0), seen.var(0)
  for task, values in model(vectors, THERE).items():
    np.testing.assert_allclose(values[THERE], expected[task][THERE], atol=1e-4)


def test_tokens_that_go_through_the_encoder_are_refused_before_a_temporal_model():
  decoder = dict(name="decoders.TaskTokens", position="encoder")
  common = dict(outputs=OUTPUTS, image_size=16, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match=r"temporal.GRU comes before the decoder; use config.model"):
    affect.AffectModel(encoder=VECTORS, temporal=SECTIONS["gru"], decoder=decoder, **common)


# In the procedure.


def procedure(over_time="", encoder=VECTORS, freeze=False, **changes):
  config = debug_config(**changes)
  config["image_size"] = config["data"]["image_size"] = 16
  decoder = dict(name="decoders.Linear", heteroscedastic=False, va_activation="tanh")
  config["model"] = dict(
    name="affect.AffectModel", encoder=encoder, temporal=SECTIONS[over_time], decoder=decoder
  )
  if freeze:
    config["optimizer"]["groups"] = {"encoder": {"pattern": "model/encoder", "freeze": True}}
  return procedures.from_config(config)


def batch(seed=0, size=4, time=3):
  rng = np.random.default_rng(seed)
  sizes = {"va": 2, "expression": 8, "au": 12}
  index = np.arange(size * time, dtype=np.int32).reshape(size, time)
  index[1, 1], index[-1, 1:] = -1, -1
  label = {task: rng.random((size, time, n), np.float32) for task, n in sizes.items()}
  there = (index >= 0).astype(np.float32)
  mask = {task: np.repeat(there[..., None], n, -1) for task, n in sizes.items()}
  return {
    "image": rng.normal(size=(size, time, 7)).astype(np.float32),
    "labels": label,
    "mask": mask | {"expression": there},
    "index": index,
  }


def flat(tree):
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


class Toy(nnx.Module):
  """A temporal model and a head for each task: no statistics of batches, no dropout."""

  input_shape = (7,)

  def __init__(self, section, rngs):
    options = dict(input_width=7, rngs=rngs) | {k: v for k, v in section.items() if k != "name"}
    self.over_time = getattr(temporal, section["name"].removeprefix("temporal."))(**options)
    sizes = {"va": 2, "expression": 8, "au": 12}
    self.heads = nnx.Dict({task: nnx.Linear(8, size, rngs=rngs) for task, size in sizes.items()})

  def __call__(self, images, present=None, *, train=False, rngs=None):
    alone = present is None
    x = images[:, None] if alone else images
    x = self.over_time(x, jnp.ones(x.shape[:2], bool) if alone else present, train=train, rngs=rngs)
    return {task: head(x[:, 0] if alone else x) for task, head in self.heads.items()}


def toy(over_time, accumulate=1):
  """Its procedure; the optimiser's state is the gradient."""
  losses = {"va": "ccc_loss", "expression": "cross_entropy", "au": "binary_cross_entropy"}
  return supervised.Supervised(
    make_model=lambda rngs: Toy(SECTIONS[over_time], rngs),
    image_size=8,
    losses={task: {"name": f"losses.{name}"} for task, name in losses.items()},
    optimizer=optim.Optimizer(optax.trace(decay=0.0), lambda step: 0.0),
    augment={},
    seed=0,
    accumulate=accumulate,
  )


def gradient_and_log(made, one):
  after, logged = jax.jit(made.train_step)(jax.jit(made.init)(), one)
  return jax.device_get((after.opt_state.trace, logged))


def close(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_the_losses_of_clips_are_those_of_all_their_frames_together():
  made = toy("framewise")
  close(gradient_and_log(made, batch()), gradient_and_log(made, flat(batch())))


@pytest.mark.parametrize("over_time", ["gru", pytest.param("transformer", marks=pytest.mark.slow)])
def test_micro_batches_of_clips_have_the_gradient_of_the_whole_batch(over_time):
  whole, parts = toy(over_time), toy(over_time, accumulate=2)
  close(gradient_and_log(parts, batch()), gradient_and_log(whole, batch()))


def test_what_stands_in_a_gap_changes_no_update():
  made, one, other = procedure("gru"), batch(), batch()
  gaps = (one["index"] < 0)[..., None]
  other["image"] = np.where(gaps, 3 - one["image"], one["image"])
  other["labels"] = {t: np.where(gaps, 1 - x, x) for t, x in one["labels"].items()}
  step, first = jax.jit(made.train_step), jax.jit(made.init)()
  close(*(jax.device_get(step(first, x)) for x in (other, one)))


@pytest.mark.slow
def test_a_frozen_encoder_stays_as_it_is_and_what_is_over_it_learns():
  made = procedure("gru", encoder=VIT, freeze=True)
  images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16, 3), np.uint8)
  step, first = jax.jit(made.train_step), jax.jit(made.init)()
  after = first
  for _ in range(2):  # the first step has no learning rate yet
    after, _ = step(after, batch() | {"image": images})
  before, after = first.params["model"], after.params["model"]
  jax.tree.map(np.testing.assert_array_equal, before["encoder"], after["encoder"])
  for part in ("temporal", "decoder"):
    assert any(
      jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), before[part], after[part]))
    )


# The config.


@pytest.mark.parametrize("kind", config_file.MODELS)
def test_every_kind_of_the_config_can_be_built(kind):
  config = config_file.get_config(f"debug,temporal={kind}").to_dict()
  config["losses"]["expression"]["logit_adjustment"] = None
  config["losses"]["au"]["positive_weight"] = None
  experiment.check_config(config)
  made = procedures.from_config(config)
  shapes = jax.eval_shape(made.init)
  after, _ = jax.eval_shape(made.train_step, shapes, experiment.batch_shapes(config))
  assert jax.tree.structure(after) == jax.tree.structure(shapes)


def test_the_twin_has_about_as_many_parameters_as_what_it_stands_beside():
  counts = {}
  for kind, section in config_file.MODELS.items():
    name = section["name"].removeprefix("temporal.")
    options = {k: v for k, v in section.items() if k != "name"}
    made = nnx.eval_shape(
      lambda name=name, options=options: getattr(temporal, name)(
        input_width=96, rngs=nnx.Rngs(0), **options
      )
    )
    counts[kind] = state.count(nnx.to_pure_dict(nnx.state(made, nnx.Param)))
  assert counts["framewise"] == pytest.approx(counts["transformer"], rel=0.02)
  assert counts["framewise"] > counts["gru"]


def test_an_encoder_of_another_run_is_frozen_and_features_stand_in_its_place(tmp_path):
  frozen = config_file.get_config("encoder=runs/x")
  assert frozen.initialise.source == "runs/x"
  assert frozen.optimizer.groups.encoder.freeze
  (tmp_path / "features.json").write_text('{"width": 24}')
  given = config_file.get_config(f"features={tmp_path}")
  assert given.model.encoder.to_dict() == dict(name="features.Precomputed", width=24)
  assert given.data.features == str(tmp_path)
  with pytest.raises(ValueError, match="features=/nowhere: there is no features.json in it"):
    config_file.get_config("features=/nowhere")
  with pytest.raises(ValueError, match="temporal=lstm: use one of gru, transformer, framewise"):
    config_file.get_config("temporal=lstm")
