"""Masked autoencoding: what is hidden, what is compared, and runs that learn so from end to end."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from flax import nnx

import affjax
from affjax import (
  cost,
  evaluate,
  experiment,
  export,
  extract,
  inference,
  initialise,
  metrics,
  optim,
  paths,
  procedures,
  report,
  train,
)
from affjax.models import masked, vit
from affjax.procedures import self_supervised
from configs import mae

QUIET = dict(
  flip_rate=0.0, scale=0.0, shift=0.0, brightness=0.0, contrast=0.0, cast=0.0, grey_rate=0.0,
  erase_rate=0.0,
)  # fmt: skip
ENCODER = dict(name="vit.ViT", variant="mu/8", width=32, depth=2, num_heads=2)
DECODER = dict(name="masked.PixelDecoder", width=16, depth=1, num_heads=2)


def make_model(rngs, **encoder):
  return masked.MaskedAutoencoder(
    encoder=ENCODER | encoder, pixel_decoder=DECODER, image_size=32, rngs=rngs
  )


def toy(encoder=None, **options):
  """Its procedure: 16 patches, of which 4 are seen; the optimiser's state is the gradient."""
  made = dict(
    make_model=lambda rngs: make_model(rngs, **(encoder or {})),
    image_size=32,
    optimizer=optim.Optimizer(optax.trace(decay=0.0), lambda step: 0.0),
    augment=QUIET,
    seed=0,
  )
  return self_supervised.MaskedAutoencoding(**made | options)


@functools.cache
def jitted(procedure, name):
  return jax.jit(getattr(procedure, name))


@functools.cache
def plain():
  """The toy procedure and its first state."""
  procedure = toy()
  return procedure, jitted(procedure, "init")()


def images(count=8, seed=0, size=32):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def batch(count=8, seed=0):
  index = np.arange(count, dtype=np.int32)
  return {"image": images(count, seed), "labels": {}, "mask": {}, "index": index}


def grey(seen, size=8):
  """[batch, patches] which patches of floats in [-1, 1] are mid grey, found pixel by pixel."""
  side = seen.shape[1] // size
  cells = [
    seen[:, i * size : (i + 1) * size, j * size : (j + 1) * size]
    for i in range(side)
    for j in range(side)
  ]
  return np.stack([(np.asarray(cell) == 0).all((1, 2, 3)) for cell in cells], 1)


def normalised_patches(x):
  """[batch, 16, 192] patches of uint8, each less its mean and divided by its deviation."""
  x = x.astype(np.float64) / 127.5 - 1
  x = x.reshape(-1, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 16, 192)
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def mini(argument="debug", **changes):
  """The config as plain types, smaller than its debug form."""
  config = mae.get_config(argument)
  config.image_size = config.data.image_size = 32
  config.model.encoder.update(variant="mu/8", depth=1, stem="patch")
  config.model.pixel_decoder.update(width=32, depth=1)
  config = json.loads(config.to_json_best_effort())
  config["draw_report"] = False
  for name, value in changes.items():
    section, leaf = config, name.split("__")
    for key in leaf[:-1]:
      section = section[key]
    section[leaf[-1]] = value
  return config


# Patches, masks and errors.


def test_patches_are_in_rows_and_can_be_put_together_again():
  x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  patches = self_supervised.cut(x, 8)
  assert patches.shape == (2, 16, 192)
  np.testing.assert_array_equal(patches[1, 6], x[1, 8:16, 16:24].reshape(-1))
  np.testing.assert_array_equal(self_supervised.assembled(patches, 8), x)


def test_what_is_hidden_is_another_part_of_each_row_and_step_and_of_each_seed_another():
  procedure, _ = plain()
  seen = lambda procedure, step, count=8: grey(jitted(procedure, "view")(batch(count), step)[0])
  first = seen(procedure, 3)
  assert (first.sum(1) == 12).all()
  assert len(np.unique(first, axis=0)) == 8
  # It is a function of seed, step and row: neither of the batch's size nor of what is in it.
  np.testing.assert_array_equal(seen(procedure, 3, 4), first[:4])
  np.testing.assert_array_equal(grey(jitted(procedure, "view")(batch(8, seed=1), 3)[0]), first)
  for other in (seen(procedure, 4), seen(toy(seed=1), 3)):
    assert (other != first).any(1).sum() > 6


def test_every_patch_is_hidden_as_often():
  view = jitted(plain()[0], "view")
  hidden = np.concatenate([grey(view(batch(64), step)[0]) for step in range(8)])
  # 512 draws of a rate of 3/4 deviate by .019.
  np.testing.assert_allclose(hidden.mean(0), 0.75, atol=0.08)


def test_scores_hide_the_same_of_a_row_in_every_batch_and_every_run():
  procedure, state = plain()
  rows = np.array([5, 0, 7])
  predict = lambda procedure, *given: np.asarray(
    jitted(procedure, "predict")(state.params, state.model_state, *given)["reconstruction"]
  )
  whole = predict(procedure, images())
  np.testing.assert_allclose(predict(procedure, images()[rows], rows), whole[rows], rtol=1e-5)
  np.testing.assert_array_equal(predict(toy(seed=7), images()), whole)
  assert (predict(procedure, images()[rows]) != whole[rows]).any()


@pytest.mark.parametrize("stem", ["patch", "residual"])
def test_what_is_hidden_has_no_influence_on_what_is_painted(stem):
  procedure = toy(dict(stem=stem), normalise=False)
  state = jitted(procedure, "init")()
  rows = np.arange(8)
  paint = jitted(procedure, "painted")
  seen, painted = paint(state.params, state.model_state, images(), rows)
  hidden = grey(seen)
  assert (hidden.sum(1) == 12).all()
  elsewhere = np.repeat(np.repeat(hidden.reshape(-1, 4, 4), 8, 1), 8, 2)[..., None]
  other = np.where(elsewhere, images(seed=1), images())
  again = paint(state.params, state.model_state, other, rows)
  np.testing.assert_array_equal(again[0], seen)
  np.testing.assert_array_equal(again[1], painted)
  # What is seen is shown as it is.
  exact = images().astype(np.float32) / 127.5 - 1
  np.testing.assert_allclose(
    np.where(elsewhere, 0, painted), np.where(elsewhere, 0, exact), atol=1e-6
  )


def test_only_what_is_hidden_is_compared():
  rng = np.random.default_rng(0)
  given, target = rng.normal(size=(2, 3, 5, 4)).astype(np.float32)
  unseen = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)
  found = self_supervised.unseen_error(given, target, unseen)
  expected = [((given - target) ** 2)[i][unseen[i]].mean() for i in range(3)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  slope = jax.grad(lambda x: self_supervised.unseen_error(x, target, unseen).sum())(given)
  assert (np.asarray(slope != 0).any(-1) == unseen).all()


def test_the_loss_is_the_error_of_normalised_hidden_patches():
  procedure, state = plain()
  # A model that paints a constant, whatever it sees.
  params = jax.tree.map(jnp.copy, state.params)
  params["model"]["pixel_decoder"]["pixels"] = {
    "kernel": jnp.zeros((16, 192)),
    "bias": jnp.full(192, 0.5),
  }
  _, found = jitted(procedure, "train_step")(state.replace(params=params), batch())
  hidden = grey(jitted(procedure, "view")(batch(), 0)[0])
  errors = ((0.5 - normalised_patches(images())) ** 2).mean(-1)
  assert float(found["loss"]) == pytest.approx(errors[hidden].mean(), rel=1e-5)
  assert float(found["loss"]) == pytest.approx(1.25, rel=1e-3)  # of numbers of variance 1


def test_what_could_not_be_read_has_no_part_in_the_loss():
  procedure, first = plain()
  step = jitted(procedure, "train_step")
  some = batch()
  some["index"][[2, 5]] = -1
  other = some | {"image": some["image"].copy()}
  other["image"][[2, 5]] = 255
  (state, found), (same, again) = (step(first, x) for x in (some, other))
  assert found["loss"] == again["loss"] != step(first, batch())[1]["loss"]
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, same.opt_state)


def test_micro_batches_have_the_loss_and_the_gradient_of_the_whole():
  some = batch()
  some["index"][3] = -1
  (state, found), (cut, of_parts) = (
    jitted(procedure, "train_step")(plain()[1], some)
    for procedure in (plain()[0], toy(accumulate=4))
  )
  assert float(of_parts["loss"]) == pytest.approx(float(found["loss"]), rel=1e-6)
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, cut.opt_state, state.opt_state)


def test_what_is_frozen_has_no_gradient_and_stays():
  groups = {"positions": {"pattern": "encoder/positions", "freeze": True}}
  procedure = toy(optimizer=optim.adamw(steps=2, groups=groups), ema_decay=0.5)
  first = jitted(procedure, "init")()
  state, found = jitted(procedure, "train_step")(first, batch())
  before, after, averaged = (paths.named(x) for x in (first.params, state.params, state.ema))
  same = {name for name in before if (before[name] == after[name]).all()}
  assert same == {"model/encoder/positions"}
  assert (averaged["model/encoder/norm/scale"] != after["model/encoder/norm/scale"]).any()
  assert found["gradient_norm"] > 0


# The model.


@pytest.mark.parametrize("options", [{}, dict(class_token=True, registers=2), dict(scan=True)])
def test_an_encoder_that_keeps_all_is_the_plain_one(options):
  model = vit.ViT(
    image_size=32, variant="mu/8", width=32, depth=2, num_heads=2, rngs=nnx.Rngs(0), **options
  )
  x = jax.random.uniform(jax.random.key(0), (3, 32, 32, 3), minval=-1)
  run = jax.jit(lambda x, kept=None: model(x, kept=kept))
  whole = run(x)
  every = jnp.tile(jnp.arange(16), (3, 1))
  np.testing.assert_allclose(run(x, every), whole, atol=2e-5)
  own = model.num_tokens - 16
  # Another order of the patches is another order of their tokens, and of nothing else.
  order = np.random.default_rng(0).permuted(np.tile(np.arange(16), (3, 1)), axis=1)
  shuffled = run(x, order)
  np.testing.assert_allclose(shuffled[:, :own], whole[:, :own], atol=2e-5)
  expected = np.take_along_axis(np.asarray(whole)[:, own:], order[..., None], 1)
  np.testing.assert_allclose(shuffled[:, own:], expected, atol=2e-5)


def test_an_encoder_costs_what_the_patches_it_keeps_cost():
  width, depth = 32, 2

  def flops(kept):
    model = vit.ViT(
      image_size=64, variant="mu/8", width=width, depth=depth, num_heads=2, rngs=nnx.Rngs(0)
    )
    x, numbers = jnp.zeros((1, 64, 64, 3)), jnp.arange(kept)[None]
    stem = cost.flops(lambda x: model.stem(x), x)
    return cost.flops(lambda x, n: model(x, kept=n), x, numbers) - stem

  # Of a block: 12 width^2 products for each token, and 2 width for each pair of tokens.
  expected = lambda n: 2 * depth * (12 * n * width**2 + 2 * n**2 * width)
  assert [flops(n) for n in (64, 32, 16)] == [expected(n) for n in (64, 32, 16)]


def test_positions_are_sines_and_cosines_of_column_and_row():
  found = masked.sine_cosine(3, 8)
  for row in range(3):
    for column in range(3):
      expected = [
        f(at * rate) for at in (column, row) for f in (np.sin, np.cos) for rate in (1.0, 0.01)
      ]
      np.testing.assert_allclose(found[3 * row + column], expected, atol=1e-6)
  model = make_model(nnx.Rngs(0), class_token=True)
  np.testing.assert_array_equal(model.encoder.positions[0, 1:], masked.sine_cosine(4, 32))


def test_painted_patches_know_their_places_and_whose_tokens_are_where():
  model = make_model(nnx.Rngs(0))
  x = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3), minval=-1)
  kept = jnp.array([[0, 5, 9, 15], [3, 4, 8, 12]])
  paint = jax.jit(lambda kept: model(x, kept))
  painted = paint(kept)
  assert painted.shape == (2, 16, 192)
  assert len(np.unique(np.asarray(painted[0]).round(5), axis=0)) == 16
  # The order in which patches are kept changes nothing.
  np.testing.assert_allclose(paint(kept[:, ::-1]), painted, atol=1e-5)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(procedure__mask_rate=0.0), r"mask_rate=0.0: use a share of the 16 patches"),
    (dict(procedure__mask_rate=1.0), "mask_rate=1.0"),
    (dict(procedure__mask_rate=0.01), "mask_rate=0.01.* hides one at least"),
    (dict(procedure__mask_rate=float("nan")), "mask_rate=nan"),
    (dict(model__pixel_decoder__width=30), "width 30: .* a multiple of 4"),
    (dict(model__pixel_decoder__depth=0), "pixel_decoder.depth=0: use 1 to 64"),
    (
      dict(model__encoder=dict(name="mobilenet.MobileNet", multiplier=0.25)),
      "'mobilenet.MobileNet' sees whole images: masked autoencoding needs vit.ViT",
    ),
    (dict(procedure__name="supervised.Supervised"), "supervised.Supervised"),
    (
      dict(labels=dict(va=("valence", "arousal")), losses=dict(va=dict(name="losses.ccc_loss"))),
      r"self_supervised.MaskedAutoencoding takes no \['losses'\]",
    ),
  ],
)
def test_what_does_not_fit_is_an_error_that_says_what_does(changes, message):
  with pytest.raises(ValueError, match=message):
    procedures.from_config(mini(**changes))


def test_clips_are_refused_before_any_data_is_made(tmp_path):
  with pytest.raises(ValueError, match="clips.length=4 without config.labels.* use 0"):
    train.run(mini(data__clips=dict(length=4)), tmp_path / "run", str(tmp_path / "data"))
  assert not list(tmp_path.iterdir())


# Scores.


def test_errors_are_means_over_rows_however_they_come():
  rng = np.random.default_rng(0)
  error, yardstick = rng.uniform(size=(2, 12)).astype(np.float32)
  mask = np.arange(12) % 3 > 0
  of = lambda rows: metrics.SquaredError.from_model_output(error[rows], yardstick[rows], mask[rows])
  parts = metrics.SquaredError.empty().merge(of(slice(5))).merge(of(slice(5, 12)))
  found, floor = parts.compute(), parts.floor()
  mean, of_yardstick = (x[mask].mean(dtype=np.float64) for x in (error, yardstick))
  assert float(found["mse"]) == pytest.approx(mean, rel=1e-6)
  assert float(found["r2"]) == pytest.approx(1 - mean / of_yardstick, rel=1e-5)
  assert (float(floor["mse"]), float(floor["r2"])) == (pytest.approx(of_yardstick, rel=1e-6), 0)


# Runs.


@pytest.fixture(scope="module")
def finished(tiny_faces, tmp_path_factory):
  """A run: its folder, its config and what `run` returned."""
  where = tmp_path_factory.mktemp("painted") / "run"
  config = mini()
  return where, config, train.run(config, where, tiny_faces)


def log(where, kind="train"):
  lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  return [e for e in lines if e["kind"] == kind]


def test_a_run_is_scored_by_what_it_paints_beside_the_floor(finished, tiny_faces):
  where, config, result = finished
  assert list(result["scores"]) == ["validation", "test"]
  for split, scores in result["scores"].items():
    floors = result["floors"][split]
    assert list(scores) == list(floors) == ["reconstruction/mse", "reconstruction/r2"]
    expected = 1 - scores["reconstruction/mse"] / floors["reconstruction/mse"]
    assert scores["reconstruction/r2"] == pytest.approx(expected)
    assert 0.5 < floors["reconstruction/mse"] <= 1
    assert floors["reconstruction/r2"] == 0
  # Masks are of rows, so another size of the batches changes nothing.
  again = evaluate.run(
    {**config, "evaluate": {**config["evaluate"], "batch_size": 24}}, where, tiny_faces
  )
  for split, scores in result["scores"].items():
    assert again["scores"][split] == pytest.approx(scores, rel=1e-5)
  assert (where / train.PICTURE).is_file()
  assert not (where / report.REPORT).exists()


def test_a_stopped_run_goes_on_to_the_bit(finished, tiny_faces, tmp_path, capsys):
  where, config, result = finished
  half = tmp_path / "run"
  shutil.copytree(where, half)
  shutil.rmtree(half / "checkpoints" / "20")
  assert train.run(config, half, tiny_faces)["scores"] == result["scores"]
  assert "continues from step 15" in capsys.readouterr().out
  kept = ("step", "loss", "gradient_norm", "learning_rate")
  same = [[{n: e[n] for n in kept} for e in log(x)] for x in (where, half)]
  assert same[0] == same[1]
  of = lambda x: initialise.read({"source": str(x), "checkpoint": "20"}, state_of(config)).arrays
  whole, resumed = of(where), of(half)
  assert whole.keys() == resumed.keys()
  for name, x in whole.items():
    assert x.tobytes() == resumed[name].tobytes(), name


def state_of(config):
  return jax.eval_shape(procedures.from_config(config).init)


def test_a_run_without_labels_says_what_it_is_for(finished, tiny_faces, tmp_path):
  where, _, _ = finished
  said = "learnt without labels and predicts nothing: .*vit_mtl.py --config.initialise.source="
  with pytest.raises(ValueError, match=said):
    affjax.load(where)
  with pytest.raises(ValueError, match=said):
    extract.extract(where, tmp_path / "out", data_dir=tiny_faces)
  with pytest.raises(ValueError, match=said):
    export.export(where, output=tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_its_report_shows_curves_and_what_is_painted(finished, tiny_faces):
  where, _, _ = finished
  report.main([f"--workdir={where}", f"--data_dir={tiny_faces}"])
  written = (where / report.REPORT).read_text()
  (where / report.REPORT).unlink()
  for words in ("reconstruction/r2", "Learning", "loss: in all", "the faces painted"):
    assert words in written
  assert "Attention" not in written
  assert written.count("data:image/png") == 1


def test_a_supervised_run_starts_from_its_encoder(finished, tiny_faces, tmp_path, capsys):
  where, config, _ = finished
  changes = dict(
    steps=2, image_size=32, data__image_size=32, model__encoder=config["model"]["encoder"]
  )
  supervised = debug_config(initialise__source=str(where), **changes)
  train.run(supervised, tmp_path / "run", tiny_faces)
  source = initialise.read({"source": str(where)}, state_of(config)).arrays
  own = paths.named(state_of(supervised).params)
  encoder = [name for name in own if name.startswith("model/encoder/")]
  assert f"taken: {len(encoder)} of {len(own)} arrays" in capsys.readouterr().out
  taken = initialise.read({"source": str(where)}, state_of(supervised)).arrays
  assert sorted(taken) == sorted(encoder)
  for name in encoder:
    np.testing.assert_array_equal(taken[name], source[name])


@pytest.mark.slow
def test_what_is_painted_is_nearer_than_the_mean_patch_of_its_place(tiny_faces, tmp_path):
  config = mini("debug,steps=600,batch_size=32", optimizer__learning_rate=3e-3)
  config["evaluate"]["every"] = config["checkpoint"]["every"] = 600
  where = tmp_path / "run"
  found = train.run(config, where, tiny_faces)["scores"]["validation"]["reconstruction/r2"]

  # The mean patch of a place knows what faces are like, but not whose this one is.
  data = experiment.Data(config, tiny_faces)
  every = lambda split: data.records(split).batch(np.arange(len(data.records(split))))["image"]
  (trained, _), (scored, seen) = (
    (normalised_patches(every(split)), every(split)) for split in ("train", "validation")
  )
  state, procedure, _ = inference.restored(config, where, "latest", "raw")
  hidden = grey(procedure.painted(*state, seen, np.arange(len(seen)))[0])
  off = ((scored - trained.mean(0, keepdims=True)) ** 2).mean(-1)[hidden].mean()
  mean_patch = 1 - off / (scored**2).mean(-1)[hidden].mean()
  assert found > mean_patch + 0.05, (found, mean_patch)
