"""VGG16 and residual networks at full size against plain PyTorch and Keras.

Needs the extra `parity`. Where AFFJAX_PARITY is set, as in CI, its absence is an error.
"""

import os

import jax
import numpy as np
import public_weights
import pytest
from flax import nnx

from affjax.models import resnet, vgg, weights

os.environ["KERAS_BACKEND"] = "jax"  # read when it is imported first
os.environ["KERAS_HOME"] = os.devnull  # else it would obey, and write, a file of the user's
if not os.environ.get("AFFJAX_PARITY"):
  reason = 'no {}: pip install "torch==2.13.0" and then ".[parity]"'
  pytest.importorskip("torch", reason=reason.format("torch"))
  pytest.importorskip("keras", reason=reason.format("Keras"))

import keras
import torch
import torch_references as references

SIZE = 64
# Name -> network, size of its images, what changes of the encoder that its names need.
NETWORKS = {
  "vgg16": (lambda: references.VGG16(image_size=SIZE, dense=512), {}),
  "vgg16, map": (lambda: references.VGG16(dense=0), {}),
  "resnet18": (lambda: references.ResNet(18), {}),
  "resnet34": (lambda: references.ResNet(34), {}),
  "resnet50": (lambda: references.ResNet(50), {}),
  "resnet50, norms folded": (lambda: references.ResNet(50), {"norm": "none"}),
  "resnet50 of the paper": (
    lambda: references.ResNet(50, strides=(True, False)), {"stride_in": "1x1"}
  ),
  "se-resnet50": (lambda: references.ResNet(50, gates=True), {}),
  "iresnet50": (lambda: references.InsightFace(50, image_size=SIZE), {}),
  "ir50": (lambda: references.Evolve(50, image_size=SIZE), {}),
  "ir-se50": (lambda: references.Evolve(50, image_size=SIZE, gates=True), {}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_weights_give_the_same_numbers_as_in_pytorch(name):
  make, changes = NETWORKS[name]
  model = make()
  arrays, images = public_weights.draw(references.shapes(model)), public_weights.images(SIZE)
  expected = references.run(model, arrays, images)
  ours = public_weights.encoder(weights.convert(arrays), SIZE, grid=0, **changes)
  public_weights.check(public_weights.answer(ours, images), expected)


OF_FACES = dict(image_size=112, depth=50, embedding=512)


@pytest.mark.parametrize(
  ("make", "ours", "options", "head"),
  [
    (references.VGG16, vgg.VGG, dict(dense=(4096, 4096)), "classifier.6."),
    (lambda: references.ResNet(18), resnet.ResNet, dict(depth=18), "fc."),
    (lambda: references.ResNet(34), resnet.ResNet, dict(depth=34), "fc."),
    (lambda: references.ResNet(50), resnet.ResNet, dict(depth=50), "fc."),
    (
      lambda: references.ResNet(50, gates=True), resnet.ResNet, dict(depth=50, gates=True), "fc."
    ),
    (lambda: references.InsightFace(50), resnet.ResNet, OF_FACES | dict(kind="improved"), None),
    (lambda: references.Evolve(50), resnet.ResNet, OF_FACES | dict(kind="evolve"), None),
    (
      lambda: references.Evolve(50, gates=True), resnet.ResNet,
      OF_FACES | dict(kind="evolve", gates=True), None,
    ),
  ],
)  # fmt: skip
def test_full_sizes_have_as_many_parameters_as_in_pytorch(make, ours, options, head):
  with torch.device("meta"):
    theirs = {name: p.numel() for name, p in make().named_parameters()}
  kept = sum(n for name, n in theirs.items() if not (head and name.startswith(head)))
  assert count(ours, **options) == kept


def count(ours, variables=nnx.Param, **options):
  make = lambda: ours(**({"image_size": 224} | options), rngs=nnx.Rngs(0))
  return sum(x.size for x in jax.tree.leaves(nnx.state(nnx.eval_shape(make), variables)))


def randomised(model):
  """Gives a Keras model's layers random weights."""
  for number, layer in enumerate(model.layers):
    shapes = {w.name: tuple(w.shape) for w in layer.weights}
    names = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}
    names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    # Drawn as in PyTorch, where outputs come first.
    torch_shapes = {names[n]: s[::-1] if len(s) > 1 else s for n, s in shapes.items()}
    drawn = public_weights.draw(torch_shapes, seed=number)
    layer.set_weights([drawn[names[w.name]].T for w in layer.weights])
  return model


def layer_of(model, convolution, norm=None):
  """Our arrays of a convolution of Keras, whose bias goes into the mean of the norm after it."""
  kernel, bias = map(np.asarray, model.get_layer(convolution).get_weights())
  kernel = kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel
  if norm is None:
    return {"kernel": kernel, "bias": bias}
  scale, shift, mean, variance = map(np.asarray, model.get_layer(norm).get_weights())
  parts = {"norm/scale": scale, "norm/mean": mean - bias, "norm/var": variance}
  return {"kernel": kernel, "bias": shift, **parts}


def below(prefix, arrays):
  return {f"{prefix}/{name}": array for name, array in arrays.items()}


def check_keras(model, arrays, **section):
  images = public_weights.images(SIZE)
  with jax.numpy_rank_promotion("allow"):
    expected = np.asarray(model(images))
  public = weights.Public("keras", arrays, section)
  found = public_weights.answer(public_weights.encoder(public, SIZE, grid=0), images)
  public_weights.check(found, expected)


@pytest.mark.slow
def test_a_vgg16_of_keras_gives_the_same_map():
  options = dict(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
  model = randomised(keras.applications.VGG16(**options))
  convolutions = [layer.name for layer in model.layers if layer.weights]
  places = ["stem", *(f"blocks/{i}" for i in range(12))]
  arrays = {}
  for place, name in zip(places, convolutions, strict=True):
    arrays |= below(place, layer_of(model, name))
  check_keras(model, arrays, name="vgg.VGG")
  assert model.count_params() == count(vgg.VGG)


@pytest.mark.slow
def test_a_resnet50_of_keras_gives_the_same_map():
  options = dict(weights=None, include_top=False, input_shape=(SIZE, SIZE, 3))
  model = randomised(keras.applications.ResNet50(**options))
  arrays, block = below("stem", layer_of(model, "conv1_conv", "conv1_bn")), 0
  for stage, repeats in enumerate((3, 4, 6, 3), 2):
    for index in range(1, repeats + 1):
      for number in range(0 if index == 1 else 1, 4):
        part = f"conv{stage}_block{index}_{number}"
        place = f"layers/{number - 1}" if number else "shortcut"
        arrays |= below(f"blocks/{block}/{place}", layer_of(model, f"{part}_conv", f"{part}_bn"))
      block += 1
  check_keras(model, arrays, name="resnet.ResNet", depth=50, stride_in="1x1")
  # There convolutions have biases beside those of their norms, and statistics count.
  channels = count(resnet.ResNet, nnx.BatchStat, depth=50) // 2
  assert model.count_params() == count(resnet.ResNet, depth=50) + 3 * channels
