"""Valence and arousal come of scores alone, and a network that is frozen stays as it is."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import public_weights
import pytest
from flax import nnx

from affjax import paths, procedures
from affjax.build import build
from affjax.models import attention, emma
from scripts import measure_scores

OUTPUTS = {"va": 2, "expression": 8, "au": 12}
SIZE, ROWS = 32, 6


def rngs(seed=0):
  return nnx.Rngs(seed)


def scores(**changes):
  """A decoder of features, with random numbers for all its own."""
  options = dict(outputs=OUTPUTS, input_width=30, input_length=4, width=64, va_width=16)
  return public_weights.drawn(lambda: emma.Scores(**options | changes, rngs=rngs()))


def tokens(width=30, rows=ROWS, length=4, seed=0):
  drawn = np.random.default_rng(seed).normal(size=(rows, length, width))
  return jnp.asarray(drawn, jnp.float32)


PRIOR = dict(
  name="affect.AffectModel",
  encoder=dict(name="resnet.ResNet", depth=18, stages=1, multiplier=0.25, grid=0),
  decoder=dict(name="attention.DAN", num_heads=2),
)
MODEL = dict(
  name="emma.EMMA",
  encoder=dict(name="vit.ViT", variant="mu/16", width=32, depth=1, num_heads=2),
  prior=PRIOR,
  decoder=dict(name="emma.Scores", width=24, va_width=16),
)


def model(**changes):
  options = dict(outputs=OUTPUTS, image_size=SIZE)
  make = lambda: build(MODEL | changes, "affjax.models", **options, rngs=rngs())
  return public_weights.drawn(make)


def images(rows=ROWS):
  return jnp.asarray(public_weights.images(SIZE, rows))


# The head.


def array(variable):
  return np.asarray(variable[...], np.float64)


def dense(layer, x):
  return x @ array(layer.kernel) + array(layer.bias)


def test_the_head_is_two_small_networks_in_a_row():
  decoder, x = scores(beside=8), tokens()
  beside = tokens(8, length=1, seed=1)[:, 0]
  outputs = decoder(x, beside)
  hidden = np.maximum(dense(decoder.hidden, np.asarray(x, np.float64).mean(1)), 0)
  units, expressions = (dense(decoder.heads.dense[t], hidden) for t in ("au", "expression"))
  np.testing.assert_allclose(outputs["au"], units, atol=1e-4)
  np.testing.assert_allclose(outputs["expression"], expressions, atol=1e-4)
  numbers = np.concatenate([units, expressions, beside], 1)
  assert numbers.shape == (ROWS, 28)
  hidden = np.maximum(dense(decoder.va_hidden, numbers), 0)
  np.testing.assert_allclose(outputs["va"], dense(decoder.va_heads.dense["va"], hidden), atol=1e-4)


def slopes(decoder, x):
  """Task -> [rows, size, width] how its outputs change with the features."""
  of_row = lambda row: {task: y[0] for task, y in decoder(row[None, None]).items()}
  found = jax.jit(jax.vmap(jax.jacobian(of_row)))(x[:, 0])
  return {task: np.asarray(j, np.float64) for task, j in found.items()}


def test_what_moves_no_score_moves_neither_valence_nor_arousal():
  # Where there are more features than scores, most directions are such.
  beyond = {}
  for source in emma.SOURCES:
    found = slopes(scores(va_from=source), tokens(length=1))
    beyond[source] = 0
    for row in range(ROWS):
      directions = np.concatenate([found["expression"][row], found["au"][row]])
      assert np.linalg.matrix_rank(directions) == 20
      moves_none = np.linalg.svd(directions)[2][20:]
      assert moves_none.shape == (10, 30)
      size = np.abs(found["va"][row]).max()
      beyond[source] = max(beyond[source], np.abs(found["va"][row] @ moves_none.T).max() / size)
  assert beyond["scores"] < 1e-4
  assert beyond["features"] > 0.1


def test_features_that_no_score_sees_change_nothing():
  x = tokens()
  for source in emma.SOURCES:
    decoder = scores(va_from=source)
    decoder.hidden.kernel[...] = decoder.hidden.kernel[...].at[10:].set(0)
    before, after = decoder(x), decoder(x.at[:, :, 10:].add(1))
    for task in ("expression", "au"):
      np.testing.assert_array_equal(before[task], after[task])
    assert np.array_equal(before["va"], after["va"]) == (source == "scores")


def test_scores_from_elsewhere_count_for_valence_and_arousal_alone():
  decoder, x = scores(beside=8), tokens()
  first, second = (decoder(x, tokens(8, length=1, seed=s)[:, 0]) for s in (1, 2))
  assert (np.abs(first["va"] - second["va"]) > 1e-3).all()
  for task in ("expression", "au"):
    np.testing.assert_array_equal(first[task], second[task])


def test_the_order_of_the_labels_is_only_an_order():
  decoder = scores()
  outputs = {task: OUTPUTS[task] for task in ("au", "va", "expression")}
  other = scores(outputs=outputs)
  nnx.update(other, nnx.state(decoder))
  for task, found in other(tokens()).items():
    np.testing.assert_array_equal(found, decoder(tokens())[task])


def test_the_first_token_or_the_mean_of_all_is_read():
  x = tokens()
  first, mean = (scores(pool=pool)(x) for pool in ("first", "mean"))
  alone = scores(input_length=1)(x[:, :1])
  for task in OUTPUTS:
    np.testing.assert_array_equal(first[task], alone[task])
    assert not np.allclose(first[task], mean[task], atol=1e-3)


def test_the_first_token_is_read_where_it_is_a_class_token():
  first = MODEL["decoder"] | {"pool": "first"}
  with pytest.raises(ValueError, match="config.model.decoder.pool='first' .*class_token=True, or "):
    model(decoder=first)
  assert set(model(decoder=first, encoder=MODEL["encoder"] | {"class_token": True})(images()))


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(va_from="tokens"), r"va_from='tokens': use one of \['scores', 'features'\]"),
    (dict(pool="last"), r"pool='last': use one of \['mean', 'first'\]"),
    (dict(width=0), "decoder.width=0: use 1 or more"),
    (dict(va_width=0), "decoder.va_width=0: use 1 or more"),
    (dict(outputs={"va": 2}), "config.labels has va: use va and one of these"),
    (dict(outputs={"au": 12}), "config.labels has au: use va and one of these"),
  ],
)
def test_a_head_that_cannot_be_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    scores(**changes)


# The model.


def test_the_second_network_has_a_say_in_valence_and_arousal_alone():
  with_it, x = model(), images()
  without = model(prior=None)
  kernel = array(with_it.decoder.va_hidden.kernel)
  nnx.update(without.encoder, nnx.state(with_it.encoder))
  for name in ("hidden", "heads", "va_heads"):
    nnx.update(getattr(without.decoder, name), nnx.state(getattr(with_it.decoder, name)))
  without.decoder.va_hidden.bias[...] = with_it.decoder.va_hidden.bias[...]
  without.decoder.va_hidden.kernel[...] = jnp.asarray(kernel[:20], jnp.float32)
  found, expected = with_it(x), without(x)
  for task in ("expression", "au"):
    np.testing.assert_array_equal(found[task], expected[task])
  assert (np.abs(found["va"] - expected["va"]) > 1e-3).all()
  # The last eight numbers that are read are its logits.
  with_it.decoder.va_hidden.kernel[...] = jnp.asarray(kernel, jnp.float32).at[20:].set(0)
  np.testing.assert_allclose(with_it(x)["va"], expected["va"], atol=1e-5)


def test_frames_of_clips_are_images_that_are_alone():
  whole, x = model(), images()
  of_clips = whole(x.reshape(2, 3, SIZE, SIZE, 3), jnp.ones((2, 3), bool))
  for task, expected in whole(x).items():
    assert of_clips[task].shape == (2, 3, OUTPUTS[task])
    np.testing.assert_allclose(of_clips[task].reshape(expected.shape), expected, atol=1e-5)


def test_features_are_what_the_scores_are_read_from():
  whole, x = model(), images()
  found = whole.features(x)
  np.testing.assert_allclose(found.pop("features"), whole.encoder(x).mean(1), atol=1e-5)
  for task, expected in whole(x).items():
    np.testing.assert_array_equal(found[task], expected)


def test_the_vits_attention_is_given():
  outputs, maps = model()(images(), attention=True)
  assert maps["encoder"].shape == (1, ROWS, 2, 4, 4)
  assert maps["decoder"] == {}
  np.testing.assert_allclose(maps["encoder"].sum(-1), 1, atol=1e-5)
  assert set(outputs) == set(OUTPUTS)


def test_as_an_onnx_file_it_says_the_same():
  if not os.environ.get("AFFJAX_ONNX"):
    pytest.importorskip("onnxruntime", reason='no onnxruntime: pip install "affjax[onnx]"')
  import onnxruntime

  from affjax import onnx_graph

  whole, x = model(), images()
  rows = jax.export.symbolic_shape("rows")[0]
  shape = jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
  made = onnx_graph.convert(whole, {"images": shape}).SerializeToString()
  session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
  names = [output.name for output in session.get_outputs()]
  found = dict(zip(names, session.run(None, {"images": np.asarray(x)}), strict=True))
  expected = whole(x)
  assert found.keys() == expected.keys()
  for task, y in expected.items():
    np.testing.assert_allclose(found[task], y, atol=1e-3 * float(np.abs(y).max()))


def test_how_many_scores_come_from_elsewhere_follows_from_the_second_network():
  with pytest.raises(ValueError, match="config.model.decoder.beside follows from"):
    model(decoder=MODEL["decoder"] | dict(beside=8))


def test_a_second_network_of_expressions_needs_some():
  with pytest.raises(ValueError, match="config.model.prior knows expressions"):
    build(MODEL, "affjax.models", outputs={"va": 2, "au": 12}, image_size=SIZE, rngs=rngs())


def statistics(module):
  return paths.named(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))


def test_its_batch_norms_keep_their_statistics_while_training_whoever_asks():
  whole, x = model(), images()
  before = {name: np.asarray(leaf) for name, leaf in statistics(whole).items()}
  assert len(before) > 10
  whole(x, train=True, rngs=nnx.Rngs(dropout=0))
  for name, leaf in statistics(whole).items():
    np.testing.assert_array_equal(leaf, before[name])
  # Left to itself it would drift.
  whole.prior(x, train=True, rngs=nnx.Rngs(dropout=0))
  moved = [name for name, leaf in statistics(whole).items() if (leaf != before[name]).any()]
  assert len(moved) == len(before)


# Learning.


@pytest.fixture(scope="module")
def learning():
  """A procedure, its state before the first update, and a compiled update."""
  procedure = procedures.from_config(
    dict(
      seed=0,
      steps=10,
      image_size=SIZE,
      dtype="float32",
      labels={task: list(range(size)) for task, size in OUTPUTS.items()},
      augment=dict(flip_rate=0.0, erase_rate=0.0),
      model=MODEL,
      losses=dict(
        va=dict(name="losses.ccc_loss"),
        expression=dict(name="losses.cross_entropy"),
        au=dict(name="losses.binary_cross_entropy"),
      ),
      procedure=dict(name="supervised.Supervised", weighting="equal"),
      optimizer=dict(
        name="optim.adamw",
        weight_decay=0.0,
        groups=dict(prior=dict(pattern="model/prior", freeze=True)),
      ),
    )
  )
  return procedure, jax.jit(procedure.init)(), jax.jit(procedure.train_step)


def batch(*labelled, seed=0):
  """Labels of some tasks; NaN in place of the others'."""
  rng = np.random.default_rng(seed)
  labels = {
    "va": rng.uniform(-1, 1, (ROWS, 2)),
    "expression": np.eye(8)[rng.integers(0, 8, ROWS)],
    "au": rng.integers(0, 2, (ROWS, 12)),
  }
  labels = {t: np.where(t in labelled, y, np.nan).astype(np.float32) for t, y in labels.items()}
  mask = {task: np.isfinite(y).astype(np.float32) for task, y in labels.items()}
  mask["expression"] = mask["expression"][:, 0]
  pixels = rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8)
  return dict(image=pixels, labels=labels, mask=mask, index=np.arange(ROWS, dtype=np.int32))


def changed(before, after):
  """The names of what differs by a bit."""
  before, after = (paths.named(tree) for tree in (before, after))
  return {n for n in before if np.asarray(before[n]).tobytes() != np.asarray(after[n]).tobytes()}


def test_frozen_means_frozen_to_the_bit_and_the_rest_learns(learning):
  _, state, step = learning
  after = state
  for seed in range(3):
    after, _ = step(after, batch("va", "expression", "au", seed=seed))
  assert not changed(state.model_state, after.model_state)
  names = set(paths.named(state.params))
  frozen = {name for name in names if name.startswith("model/prior/")}
  assert len(frozen) > 20
  moved = changed(state.params, after.params)
  assert not moved & frozen
  assert moved == names - frozen


def test_labels_of_valence_and_arousal_alone_reach_the_vit_through_the_scores(learning):
  _, state, step = learning
  # The weights of valence and arousal are near 0 before the first updates, and then their slopes.
  state, _ = step(state, batch("va", "expression", "au"))
  after, metrics = step(state, batch("va", seed=1))
  assert metrics["loss/expression"] == metrics["loss/au"] == 0
  moved = changed(state.params, after.params)
  for part in ("model/encoder/blocks/", "decoder/hidden", "decoder/heads", "decoder/va_hidden"):
    assert any(part in name for name in moved), part
  assert not any("prior" in name for name in moved)


def test_without_their_labels_valence_and_arousal_have_no_gradient(learning):
  _, state, step = learning
  after, metrics = step(state, batch("expression"))
  assert metrics["loss/va"] == metrics["loss/au"] == 0
  assert np.isfinite(float(metrics["gradient_norm"]))
  moved = changed(state.params, after.params)
  assert any("decoder/heads/dense/expression" in name for name in moved)
  assert not any("decoder/va_" in name or "dense/au" in name for name in moved)


# What its direction is measured on.


def explained(x, y):
  """The share of the variance of new rows that a linear model of others explains."""
  half = len(x) // 2
  x = np.concatenate([x, np.ones((len(x), 1))], 1)
  kernel = np.linalg.lstsq(x[:half], y[:half], rcond=None)[0]
  return 1 - ((y[half:] - x[half:] @ kernel) ** 2).mean() / y[half:].var(0).mean()


def test_without_the_cause_labels_say_nothing_and_features_as_much():
  found = {}
  for follows in (True, False):
    batch = measure_scores.planted(100, follows)["report"]
    labels = [batch["labels"][task].astype(np.float64) for task in ("au", "expression", "va")]
    of_labels = explained(np.concatenate(labels[:2], 1)[:, :-1], labels[2])
    found[follows] = of_labels, explained(batch["image"].astype(np.float64), labels[2])
  assert found[True][0] > 0.25
  assert abs(found[False][0]) < 0.05
  assert found[True][1] == pytest.approx(found[False][1], abs=0.05)
  assert found[True][1] > 0.6


# The CNN's attention.


def dan(width=32, side=3, outputs=None, **changes):
  options = dict(input_width=width, input_length=side**2, outputs=outputs or {"expression": 8})
  return public_weights.drawn(lambda: attention.DAN(**options | changes, rngs=rngs()))


def test_heads_that_are_alike_say_nothing():
  decoder, x = dan(), tokens(32, length=9)
  assert np.ptp(decoder(x)["expression"], axis=0).min() > 1e-3
  for head in list(decoder.attention)[1:]:
    nnx.update(head, nnx.state(decoder.attention[0]))
  assert np.ptp(decoder(x)["expression"], axis=0).max() < 1e-4


def test_heads_have_no_order():
  decoder, x = dan(), tokens(32, length=9)
  before = decoder(x)["expression"]
  first, last = (nnx.clone(decoder.attention[i]) for i in (0, 3))
  nnx.update(decoder.attention[0], nnx.state(last))
  assert not np.allclose(decoder(x)["expression"], before, atol=1e-3)
  nnx.update(decoder.attention[3], nnx.state(first))
  np.testing.assert_allclose(decoder(x)["expression"], before, atol=1e-4)


def test_a_map_on_its_side_is_the_same_map_with_its_kernels_on_their_side():
  decoder, x = dan(), tokens(32, length=9)
  before = decoder(x)["expression"]
  turned = x.reshape(ROWS, 3, 3, 32).swapaxes(1, 2).reshape(x.shape)
  assert not np.allclose(decoder(turned)["expression"], before, atol=1e-3)
  for head in decoder.attention:
    square, wide, tall = head.places
    square.kernel[...] = square.kernel[...].swapaxes(0, 1)
    states = [nnx.state(nnx.clone(layer)) for layer in (wide, tall)]
    for layer, state in zip((tall, wide), states, strict=True):
      state["kernel"] = state["kernel"].replace(state["kernel"][...].swapaxes(0, 1))
      nnx.update(layer, state)
  np.testing.assert_allclose(decoder(turned)["expression"], before, atol=1e-4)


def test_every_task_has_its_outputs():
  outputs = dan(outputs=OUTPUTS)(tokens(32, length=9).astype(jnp.bfloat16))
  assert {task: y.shape for task, y in outputs.items()} == {
    t: (ROWS, n) for t, n in OUTPUTS.items()
  }
  assert {y.dtype for y in outputs.values()} == {jnp.dtype("float32")}
  assert (np.abs(outputs["va"]) <= 1).all()


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (dict(input_length=10), "the encoder gives 10 tokens: use a convolutional one"),
    (dict(num_heads=1), "num_heads 1 of attention.DAN: use 2 or more"),
    (dict(width=8), "input_width 8 of attention.DAN: use 16 or more"),
  ],
)
def test_a_map_that_cannot_be_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    dan(**changes)


def test_at_full_size_the_arrays_are_those_of_the_description():
  options = dict(outputs={"expression": 8}, input_width=512, input_length=49)
  decoder = nnx.eval_shape(lambda: attention.DAN(**options, rngs=rngs()))
  assert len(decoder.attention) == 4
  for head in decoder.attention:
    assert head.reduce.kernel.shape == (512, 256)
    assert [layer.kernel.shape[:2] for layer in head.places] == [(3, 3), (1, 3), (3, 1)]
    assert {layer.kernel.shape[2:] for layer in head.places} == {(256, 512)}
    assert {layer.norm.mean.shape for layer in head.places} == {(512,)}
    assert head.reduce.norm.mean.shape == (256,)
    assert head.squeeze.kernel.shape == (512, 32)
    assert head.expand.kernel.shape == (32, 512)
  assert decoder.heads.dense["expression"].kernel.shape == (512, 8)
  assert decoder.last_norm.mean.shape == (8,)


def torch_dan(width, classes):
  """The same in plain PyTorch, from the description of it."""
  import torch
  from torch import nn

  class Head(nn.Module):
    def __init__(self):
      super().__init__()
      half, inside = width // 2, width // 16
      normed = lambda *sizes, **options: nn.Sequential(
        nn.Conv2d(*sizes, **options), nn.BatchNorm2d(sizes[1])
      )
      self.one = normed(width, half, 1)
      self.square = normed(half, width, 3, padding=1)
      self.wide = normed(half, width, (1, 3), padding=(0, 1))
      self.tall = normed(half, width, (3, 1), padding=(1, 0))
      self.squeeze, self.norm = nn.Linear(width, inside), nn.BatchNorm1d(inside)
      self.expand = nn.Linear(inside, width)

    def forward(self, x):
      y = self.one(x)
      y = torch.relu(self.square(y) + self.wide(y) + self.tall(y))
      mean = (x * y.sum(1, keepdim=True)).mean((2, 3))
      inside = torch.relu(self.norm(self.squeeze(mean)))
      return mean * torch.sigmoid(self.expand(inside))

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      self.heads = nn.ModuleList(Head() for _ in range(4))
      self.last, self.norm = nn.Linear(width, classes), nn.BatchNorm1d(classes)

    def forward(self, x):
      vectors = torch.stack([head(x) for head in self.heads], 1)
      return self.norm(self.last(torch.log_softmax(vectors, 1).sum(1)))

  return Network()


def of_torch(state):
  """Our arrays, from those of `torch_dan`: a bias before a norm goes into its mean."""
  value = lambda name: state[name].numpy()

  def convolution(theirs, ours, kernel):
    parts = {part: value(f"{theirs}.1.{name}") for part, name in NORM.items()}
    return {
      f"{ours}/kernel": kernel(value(f"{theirs}.0.weight").transpose(2, 3, 1, 0)),
      f"{ours}/bias": parts.pop("bias"),
      f"{ours}/norm/mean": parts.pop("mean") - value(f"{theirs}.0.bias"),
    } | {f"{ours}/norm/{part}": array for part, array in parts.items()}

  def linear(theirs, ours):
    return {f"{ours}/kernel": value(f"{theirs}.weight").T, f"{ours}/bias": value(f"{theirs}.bias")}

  norm = lambda theirs, ours: {f"{ours}/{p}": value(f"{theirs}.{n}") for p, n in NORM.items()}
  arrays = linear("last", "heads/dense/expression") | norm("norm", "last_norm")
  for head in range(4):
    theirs, ours = f"heads.{head}", f"attention/{head}"
    arrays |= convolution(f"{theirs}.one", f"{ours}/reduce", lambda kernel: kernel[0, 0])
    for index, name in enumerate(("square", "wide", "tall")):
      arrays |= convolution(f"{theirs}.{name}", f"{ours}/places/{index}", lambda kernel: kernel)
    arrays |= linear(f"{theirs}.squeeze", f"{ours}/squeeze")
    arrays |= linear(f"{theirs}.expand", f"{ours}/expand")
    arrays |= norm(f"{theirs}.norm", f"{ours}/squeeze_norm")
  return arrays


NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@pytest.mark.parametrize("train", [False, True], ids=["statistics", "batch"])
def test_the_attention_is_the_one_of_the_description_in_pytorch(train):
  if not os.environ.get("AFFJAX_PARITY"):
    pytest.importorskip("torch", reason='no torch: pip install "torch==2.13.0"')
  import torch

  from affjax.models import weights

  network = torch_dan(32, 8)
  drawn = public_weights.draw({n: tuple(x.shape) for n, x in network.state_dict().items()})
  network.load_state_dict({name: torch.from_numpy(array) for name, array in drawn.items()})
  x = tokens(32, length=9)
  pixels = torch.from_numpy(np.asarray(x).reshape(ROWS, 3, 3, 32).transpose(0, 3, 1, 2).copy())
  ours = dan()
  weights.fill(ours, of_torch(network.state_dict()))
  with torch.no_grad():
    expected = network.train(train)(pixels).numpy()
  found = ours(x, train=train)["expression"]
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
