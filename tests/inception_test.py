import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import public_weights
import pytest
from flax import nnx

from affjax.models import affect, inception, weights


@functools.cache
def shapes(**options):
  return nnx.eval_shape(lambda: inception.InceptionV3(**options, rngs=nnx.Rngs(0)))


def count(model):
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_the_full_size_has_as_many_parameters_as_are_published():
  # Without the auxiliary head, and with a classifier of 1000 classes. Scales and biases of batch
  # norms count, their means and variances do not.
  model = shapes(image_size=299, grid=0)
  assert count(model) + 1000 * 2048 + 1000 == 23_834_568


# Rows of the maps of images of 299 pixels (table 1 of the paper, whose first rows are rounded up
# where there are no zeros around) and of 112, and channels.
STEM = [(149, 55, 32), (147, 53, 32), (147, 53, 64), (73, 26, 80), (71, 24, 192)]
BLOCKS = [(35, 11, 256), *[(35, 11, 288)] * 2, *[(17, 5, 768)] * 5, (8, 2, 1280)]
BLOCKS += [(8, 2, 2048)] * 2


@pytest.mark.parametrize(("column", "size"), enumerate([299, 112]))
def test_the_maps_of_every_stage_are_those_of_the_published_network(column, size):
  model = shapes(image_size=size, grid=0)
  graph, state = nnx.split(model)

  def run(state, x):
    model, maps = nnx.merge(graph, state), []
    for index, layer in enumerate([model.stem, *model.early]):
      x = layer(x)
      maps.append(x)
      x = nnx.max_pool(x, (3, 3), (2, 2)) if index in (2, 4) else x
    for block in model.blocks:
      x = block(x, train=False)
      maps.append(x)
    return maps

  maps = jax.eval_shape(run, state, jnp.zeros((1, size, size, 3)))
  expected = [(1, row[column], row[column], row[2]) for row in STEM + BLOCKS]
  assert [x.shape for x in maps] == expected
  assert (model.num_tokens, model.width) == (expected[-1][1] ** 2, 2048)


@pytest.mark.parametrize(("cut", "side", "width"), [("mixed_5b", 35, 256), ("mixed_6e", 17, 768)])
def test_it_can_stop_after_a_block(cut, side, width):
  model = shapes(image_size=299, cut=cut, grid=0, dtype="bfloat16")
  assert (model.num_tokens, model.width) == (side**2, width)
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x, train=True, attention=True)
  tokens, maps = jax.eval_shape(run, state, jnp.zeros((2, 299, 299, 3)))
  assert tokens.shape == (2, side**2, width)
  assert tokens.dtype == jnp.bfloat16
  assert maps == {}


def test_wrong_options_are_refused_by_name():
  with pytest.raises(ValueError, match="cut 'mixed_5a'.*'mixed_5b'.*'mixed_7c'"):
    shapes(image_size=75, cut="mixed_5a")
  with pytest.raises(ValueError, match="norm 'layer'.*'batch', 'group', 'none'"):
    shapes(image_size=75, norm="layer")
  with pytest.raises(ValueError, match="grid 8 of InceptionV3: .* 75 x 75 pixels is 7 x 7"):
    shapes(image_size=75, cut="mixed_5b", grid=8)
  with pytest.raises(ValueError, match="of 74 x 74 pixels is 0 x 0"):
    shapes(image_size=74, cut="mixed_7a")
  with pytest.raises(ValueError, match="of 4 x 4 pixels is 0 x 0"):
    shapes(image_size=4, cut="mixed_5b")


# Against what PyTorch made (scripts/make_convolution_goldens.py).


def golden():
  """Weights with torchvision's names, images, and the last map that they give."""
  with np.load(public_weights.GOLDENS / "inception.npz") as file:
    arrays = {key.removeprefix("a quarter/"): array for key, array in file.items()}
  named = public_weights.draw(json.loads(str(arrays["shapes"])))
  return named, public_weights.images(int(arrays["image_size"])), arrays["output"]


def map_of(named, images, **changes):
  model = public_weights.encoder(weights.convert(named), images.shape[1], grid=0, **changes)
  side = round(model.num_tokens**0.5)
  return public_weights.answer(model, images).reshape(len(images), side, side, model.width)


def test_it_answers_as_the_network_of_pytorch_with_its_weights():
  named, images, expected = golden()
  public = weights.convert(named)
  assert public.naming == "torchvision's InceptionV3"
  assert (public.encoder["multiplier"], public.encoder["count_padding"]) == (0.25, True)
  public_weights.check(map_of(named, images), expected)


def test_that_test_sees_how_means_count_the_padding_and_where_channels_come_from():
  named, images, expected = golden()
  first, second = (f"Mixed_7c.branch3x3dbl_3{x}.bn.running_mean" for x in "ab")
  swapped = named | {first: named[second], second: named[first]}
  for arrays, changes in ((named, {"count_padding": False}), (swapped, {})):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
      public_weights.check(map_of(arrays, images, **changes), expected)


def test_a_network_that_stops_early_gives_what_the_whole_one_has_there():
  named, images, _ = golden()
  early = public_weights.encoder(weights.convert(named), 107, grid=0, cut="mixed_6b", norm="none")
  whole = public_weights.encoder(weights.convert(named), 107, grid=0)
  assert (len(early.blocks), len(whole.blocks)) == (5, 11)
  whole.blocks = nnx.List([whole.blocks[index] for index in range(5)])
  found, expected = (public_weights.answer(model, images) for model in (early, whole))
  # What stops early has its norms folded, too.
  public_weights.check(found, expected.reshape(found.shape))


def test_names_that_are_not_its_own_are_said():
  named, _, _ = golden()
  one = np.ones(3, np.float32)
  for name in ("Mixed_5b.branch7x7_1.conv.weight", "Mixed_8a.branch1x1.conv.weight", "bn1.weight"):
    with pytest.raises(ValueError, match=f"^{name}: no parameters of an InceptionV3"):
      weights.convert({**named, name: one})
  # Heads are left out.
  ours = weights.convert(named).arrays
  assert "AuxLogits.conv0.conv.weight" in named
  assert ours.keys() == weights.convert({**named, "fc.other": one}).arrays.keys()
  assert not [name for name in ours if "Aux" in name or name.startswith("fc")]


# Parts.


@pytest.mark.parametrize("count_padding", [True, False])
def test_means_are_over_the_zeros_around_a_map_or_not(count_padding):
  x = np.random.default_rng(0).normal(size=(2, 4, 5, 3)).astype(np.float32)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
  size = np.full((4, 5, 1), 9.0)
  if not count_padding:
    rows, columns = np.array([2, 3, 3, 2]), np.array([2, 3, 3, 3, 2])
    size = (rows[:, None] * columns)[..., None]
  expected = windows.sum((-1, -2)) / size
  found = inception._means(jnp.asarray(x), count_padding)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert inception._means(jnp.asarray(x, jnp.bfloat16), count_padding).dtype == jnp.bfloat16


def test_training_takes_the_batch_and_moves_all_statistics():
  named, images, _ = golden()
  graph, state = nnx.split(public_weights.encoder(weights.convert(named), 107, cut="mixed_5b"))

  @jax.jit
  def train(state, x):
    model = nnx.merge(graph, state)
    return model(x, train=True), nnx.state(model, nnx.BatchStat)

  found, moved = train(state, images)
  assert np.isfinite(found).all()
  before = dict(nnx.to_flat_state(nnx.state(nnx.merge(graph, state), nnx.BatchStat)))
  after = dict(nnx.to_flat_state(moved))
  assert len(after) == 2 * (5 + 7)
  assert all(np.abs(after[path][...] - before[path][...]).max() > 0 for path in before)


def test_it_is_an_encoder_of_a_model():
  make = lambda: affect.AffectModel(
    encoder=dict(
      name="inception.InceptionV3", cut="mixed_6e", multiplier=0.25, grid=3, norm="group"
    ),
    decoder=dict(name="decoders.Linear"), outputs={"va": 2}, image_size=112, rngs=nnx.Rngs(0),
  )  # fmt: skip
  model = nnx.eval_shape(make)
  assert (model.encoder.width, model.encoder.num_tokens) == (192, 9)
  assert not jax.tree.leaves(nnx.state(model, nnx.BatchStat))
