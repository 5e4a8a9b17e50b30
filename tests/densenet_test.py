import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import public_weights
import pytest
from flax import nnx

from affjax.models import affect, densenet, weights

# Of the published networks, with a classifier of 1000 classes.
PUBLISHED = {121: 7_978_856, 169: 14_149_480, 201: 20_013_928}


@functools.cache
def shapes(**options):
  return nnx.eval_shape(lambda: densenet.DenseNet(**options, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
  "depth", [121, *(pytest.param(d, marks=pytest.mark.slow) for d in (169, 201))]
)
def test_full_sizes_have_as_many_parameters_as_are_published(depth):
  # Scales and biases of batch norms count, their means and variances do not.
  model = shapes(image_size=224, depth=depth, grid=0)
  count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  assert count + 1000 * model.width + 1000 == PUBLISHED[depth]
  flat = nnx.to_flat_state(nnx.state(model))
  assert densenet.depth_of("/".join(map(str, path)) for path, _ in flat) == depth


# Rows of the maps of images of 224 pixels (table 1 of the paper), channels of depth 121.
BLOCKS = [(56, 256), (28, 512), (14, 1024), (7, 1024)]


def test_the_maps_of_every_stage_are_those_of_the_paper():
  model = shapes(image_size=224, depth=121, grid=0)
  graph, state = nnx.split(model)

  def run(state, x):
    model = nnx.merge(graph, state)
    x = model.stem(x)
    maps = [x]
    x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for block, transition in zip(model.blocks, [*model.transitions, None], strict=True):
      for layer in block:
        x = jnp.concatenate([x, layer(x, train=False)], axis=-1)
      maps.append(x)
      if transition is not None:
        x = nnx.avg_pool(transition(x, train=False), (2, 2), (2, 2))
        maps.append(x)
    return maps, model(jnp.zeros((1, 224, 224, 3)))

  maps, tokens = jax.eval_shape(run, state, jnp.zeros((1, 224, 224, 3)))
  between = [(28, 128), (14, 256), (7, 512)]
  expected = [(112, 64), BLOCKS[0]]
  for half, block in zip(between, BLOCKS[1:], strict=True):
    expected += [half, block]
  assert [x.shape for x in maps] == [(1, side, side, width) for side, width in expected]
  assert tokens.shape == (1, model.num_tokens, model.width) == (1, 49, 1024)


@pytest.mark.parametrize(("stages", "side", "width"), [(1, 56, 256), (2, 28, 512)])
def test_it_can_stop_after_a_block(stages, side, width):
  model = shapes(image_size=224, stages=stages, grid=0, dtype="bfloat16")
  assert (model.num_tokens, model.width) == (side**2, width)
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x, train=True, attention=True)
  tokens, maps = jax.eval_shape(run, state, jnp.zeros((2, 224, 224, 3)))
  assert tokens.shape == (2, side**2, width)
  assert tokens.dtype == jnp.bfloat16
  assert maps == {}


@pytest.mark.parametrize(("size", "side"), [pytest.param(227, 7, marks=pytest.mark.slow), (112, 3)])
def test_images_of_other_sizes_have_maps_as_large_as_emotion_gcn_says(size, side):
  # 7 x 7 of 227 pixels and 3 x 3 of 112, which it takes the maximum over.
  model = shapes(image_size=size, multiplier=1 / 32, grid=0)
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x)
  tokens = jax.eval_shape(run, state, jnp.zeros((1, size, size, 3)))
  assert tokens.shape == (1, model.num_tokens, 32) == (1, side**2, 32)


def test_wrong_options_are_refused_by_name():
  with pytest.raises(ValueError, match=r"depth 120 of a DenseNet: use one of \[121, 169, 201\]"):
    shapes(image_size=224, depth=120)
  for stages in (0, 5):
    with pytest.raises(ValueError, match=f"stages {stages} of a DenseNet: it has 1 to 4"):
      shapes(image_size=224, stages=stages)
  with pytest.raises(ValueError, match="grid 57 of DenseNet: .* 224 x 224 pixels is 56 x 56"):
    shapes(image_size=224, stages=1, grid=57)
  with pytest.raises(ValueError, match="of 4 x 4 pixels is 0 x 0"):
    shapes(image_size=4, stages=2)
  with pytest.raises(ValueError, match=r"no DenseNet of \[121, 169, 201\] has blocks of \[1, 2\]"):
    densenet.depth_of(f"blocks/{name}/reduce/mix/kernel" for name in ("0/0", "1/0", "1/1"))


# Against what PyTorch made (scripts/make_convolution_goldens.py).


def golden():
  """Weights with torchvision's names, images, and the last map that they give."""
  with np.load(public_weights.GOLDENS / "densenet.npz") as file:
    arrays = {key.removeprefix("an eighth/"): array for key, array in file.items()}
  named = public_weights.draw(json.loads(str(arrays["shapes"])))
  return named, public_weights.images(int(arrays["image_size"])), arrays["output"]


def test_it_answers_as_the_network_of_pytorch_with_its_weights():
  named, images, expected = golden()
  public = weights.convert(named)
  assert public.naming == "torchvision's DenseNets"
  section = {"name": "densenet.DenseNet", "depth": 121, "multiplier": 0.125}
  assert public.encoder == section
  model = public_weights.encoder(public, images.shape[1], grid=0)
  public_weights.check(public_weights.answer(model, images), expected)


def test_published_files_name_layers_with_a_dot_more_and_mean_the_same():
  named, _, _ = golden()
  dotted = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name): x for name, x in named.items()}
  assert "features.denseblock1.denselayer1.norm.1.weight" in dotted
  found, expected = weights.convert(dotted), weights.convert(named)
  assert found.encoder == expected.encoder
  assert found.arrays.keys() == expected.arrays.keys()
  for name, array in expected.arrays.items():
    np.testing.assert_array_equal(found.arrays[name], array)


def test_names_that_are_not_its_own_and_layers_that_lack_are_said():
  named, _, _ = golden()
  one = np.ones(3, np.float32)
  for name in ("features.norm6.weight", "features.denseblock1.denselayer1.conv3.weight"):
    with pytest.raises(ValueError, match=f"^{name}: no parameters of a DenseNet"):
      weights.convert({**named, name: one})
  lacking = {k: v for k, v in named.items() if ".denselayer6." not in k}
  with pytest.raises(ValueError, match=r"no DenseNet of .* has blocks of \[5, 11, 23, 15\]"):
    weights.convert(lacking)
  assert "classifier.weight" in named
  assert not [name for name in weights.convert(named).arrays if "classifier" in name]


def first_block():
  """The golden's network to the end of its first block, and a last norm that changes nothing."""
  named, images, _ = golden()
  public, zeros = weights.convert(named), np.zeros(8 + 6 * 4, np.float32)
  same = {"norm/scale": zeros + 1, "norm/bias": zeros, "norm/mean": zeros, "norm/var": zeros + 1}
  public = dataclasses.replace(public, arrays=public.arrays | same)
  return public_weights.encoder(public, images.shape[1], grid=0, stages=1)


def test_a_layer_adds_few_channels_to_what_it_is_given_and_changes_none_of_it():
  _, images, _ = golden()
  model = first_block()
  found = public_weights.answer(model, images)
  model.blocks[0][5].grow.mix.kernel[...] *= -1
  without = public_weights.answer(model, images)
  np.testing.assert_array_equal(found[..., :-4], without[..., :-4])
  assert np.abs(found[..., -4:] - without[..., -4:]).max() > 0.1


def test_training_takes_the_batch_and_moves_all_statistics():
  _, images, _ = golden()
  graph, state = nnx.split(first_block())

  @jax.jit
  def train(state, x):
    model = nnx.merge(graph, state)
    return model(x, train=True), nnx.state(model, nnx.BatchStat)

  found, moved = train(state, images)
  assert np.isfinite(found).all()
  before = dict(nnx.to_flat_state(nnx.state(nnx.merge(graph, state), nnx.BatchStat)))
  after = dict(nnx.to_flat_state(moved))
  assert len(after) == 2 * (1 + 2 * 6 + 1)
  assert all(np.abs(after[path][...] - before[path][...]).max() > 0 for path in before)


def test_it_is_an_encoder_of_a_model():
  make = lambda: affect.AffectModel(
    encoder=dict(name="densenet.DenseNet", stages=2, multiplier=0.25, grid=0),
    decoder=dict(name="decoders.Linear"), outputs={"va": 2}, image_size=64, rngs=nnx.Rngs(0),
  )  # fmt: skip
  model = nnx.eval_shape(make)
  assert (model.encoder.width, model.encoder.num_tokens) == (128, 64)
