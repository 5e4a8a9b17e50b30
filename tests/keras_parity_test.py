"""The same weights in Keras' applications, or in PyTorch, and in ours give the same maps.

Needs the extra `parity`. Where AFFJAX_PARITY is set, as in CI, its absence is an error.
"""

import os
import re

# Keras asks when it is imported. By itself it takes TensorFlow, and what it keeps in ~/.keras.
os.environ["KERAS_BACKEND"] = "jax"
os.environ["KERAS_HOME"] = os.devnull

import jax
import numpy as np
import pytest
from flax import nnx

from affjax import build
from affjax.models import weights

if not os.environ.get("AFFJAX_PARITY"):
  reason = 'no {}: pip install "torch==2.13.0" and then ".[parity]"'
  pytest.importorskip("keras", reason=reason.format("Keras"))
  pytest.importorskip("torch", reason=reason.format("torch"))

import keras
import public_weights
import torch
import torch_concatenating
import torch_references

# Keras' names of a layer's arrays -> ours, of a norm that is that of a convolution, or its own.
OF_LAYER = {"kernel": "kernel", "bias": "bias", "gamma": "norm/scale", "beta": "bias"}
OF_LAYER |= {"moving_mean": "norm/mean", "moving_variance": "norm/var"}
OF_NORM = {"gamma": "scale", "beta": "bias", "moving_mean": "mean", "moving_variance": "var"}

MOBILENET = (
  (r"conv1(_bn)?", lambda m: "stem"),
  (r"conv_dw_(\d+)(_bn)?", lambda m: f"blocks/{int(m[1]) - 1}/depthwise"),
  (r"conv_pw_(\d+)(_bn)?", lambda m: f"blocks/{int(m[1]) - 1}/pointwise"),
)
# Blocks before the first of each stage of EfficientNet-B0 (table 1 of the paper).
BEFORE = (0, 1, 3, 5, 8, 11, 15)
PARTS = {"expand_conv": "expand", "expand_bn": "expand", "dwconv": "depthwise", "bn": "depthwise"}
PARTS |= {"se_reduce": "gate/reduce", "se_expand": "gate/expand"}
PARTS |= {"project_conv": "project", "project_bn": "project"}
EFFICIENTNET = (
  (r"stem_(conv|bn)", lambda m: "stem"),
  (r"block(\d)(\w)_(\w+)",
   lambda m: f"blocks/{BEFORE[int(m[1]) - 1] + ord(m[2]) - ord('a')}/{PARTS[m[3]]}"),
  (r"top_(conv|bn)", lambda m: "head"),
)  # fmt: skip
STEPS = {"0_bn": "reduce/norm", "1_conv": "reduce/mix", "1_bn": "grow/norm", "2_conv": "grow/mix"}
DENSENET = (
  (r"conv1_(conv|bn)", lambda m: "stem"),
  (r"conv(\d)_block(\d+)_(\w+)",
   lambda m: f"blocks/{int(m[1]) - 2}/{int(m[2]) - 1}/{STEPS[m[3]]}"),
  (r"pool(\d)_(conv|bn)",
   lambda m: f"transitions/{int(m[1]) - 2}/{'mix' if m[2] == 'conv' else 'norm'}"),
  (r"bn", lambda m: "norm"),
)  # fmt: skip
# Layers of each chain of a block, in the order in which Keras makes them; two in "2" are side by
# side.
FINE, MIDDLE, COARSE = ("1", "11", "111"), ("1", "111", "11111"), ("1", "12", "112")
CHAINS = [*[FINE] * 3, ("1", "111"), *[MIDDLE] * 4, ("11", "1111"), *[COARSE] * 2]


def inception():
  """Where its convolutions are, in the order of their making."""
  yield "stem"
  yield from (f"early/{index}" for index in range(4))
  for block, chains in enumerate(CHAINS):
    for chain, layers in enumerate(chains):
      for layer, beside in enumerate(layers):
        yield from (f"blocks/{block}/chains/{chain}/{layer}/{i}" for i in range(int(beside)))
    if len(chains) == 3:
      yield f"blocks/{block}/project"


PLACES = list(inception())
INCEPTION = ((r"(?:conv2d|batch_normalization)(?:_(\d+))?", lambda m: PLACES[int(m[1] or 0)]),)


def filled(model, seed=0):
  """Gives a model of Keras random weights and statistics, no two alike."""
  rng = np.random.default_rng(seed)
  for layer in model.layers:
    for variable in () if isinstance(layer, keras.layers.Normalization) else layer.weights:
      shape = tuple(variable.shape)
      if variable.name == "kernel":
        alone = isinstance(layer, keras.layers.DepthwiseConv2D)
        size = np.prod(shape[:2] if alone else shape[:-1])
        values = rng.normal(0, (2 / size) ** 0.5, shape)
      else:
        positive = variable.name in ("gamma", "moving_variance")
        values = positive + rng.uniform(-0.3, 0.3, shape)
      variable.assign(values.astype(np.float32))
  return model


def arrays(model, table):
  """A model's weights under our names."""
  ours = {}
  for layer in model.layers:
    if isinstance(layer, keras.layers.Normalization) or not layer.weights:
      continue
    found = [place(m) for name, place in table if (m := re.fullmatch(name, layer.name))]
    if not found:
      continue
    for variable in layer.weights:
      names = OF_NORM if found[0].endswith("norm") else OF_LAYER
      array = np.asarray(variable.value)
      if array.ndim == 4:
        array = array[..., 0] if isinstance(layer, keras.layers.DepthwiseConv2D) else array
        array = array[0, 0] if array.shape[:2] == (1, 1) else array
      weights.fitting.put(ours, f"{found[0]}/{names[variable.name]}", array)
  return ours


def answer(model, images):
  """What a model of Keras makes of images, compiled as one program."""
  run = lambda *given: model.stateless_call(*given, training=False)[0]
  trained, others = (
    [v.value for v in variables]
    for variables in (model.trainable_variables, model.non_trainable_variables)
  )
  return np.asarray(jax.jit(run)(trained, others, images))


# Application, table, layer of the last map, size of images, parameters that are trained with a
# classifier of 1000 classes as they are published, our section.
MODELS = {
  "InceptionV3": (INCEPTION, "mixed10", 299, 23_834_568, dict(name="inception.InceptionV3")),
  "DenseNet121": (DENSENET, "relu", 224, 7_978_856, dict(name="densenet.DenseNet")),
  "EfficientNetB0": (
    EFFICIENTNET, "top_activation", 224, 5_288_548,
    dict(name="efficientnet.EfficientNet", variant="b0"),
  ),
  "MobileNet": (
    MOBILENET, "conv_pw_13_relu", 224, 4_231_976, dict(name="mobilenet.MobileNet", norm="batch")
  ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_application_of_keras_has_the_same_last_map_and_as_many_parameters(name):
  table, last, size, published, section = MODELS[name]
  images = public_weights.images(size)
  keras.utils.clear_session()  # names of layers that have none count from 0
  with jax.numpy_rank_promotion("allow"):
    whole = filled(getattr(keras.applications, name)(weights=None))
    features = keras.Model(whole.input, whole.get_layer(last).output)
    # EfficientNet's own first layer divides pixels by 255.
    given = images * 255 if name == "EfficientNetB0" else images
    expected = answer(features, given)
  values = arrays(features, table)
  count = sum(int(np.prod(v.shape)) for v in whole.trainable_variables)
  if name == "InceptionV3":  # Keras' batch norms have no scales
    scales = {k.replace("/mean", "/scale"): v * 0 + 1 for k, v in values.items() if "/mean" in k}
    count += sum(v.size for v in scales.values())
    values |= scales
  public = weights.Public("keras", values, section)
  model = public_weights.encoder(public, size, grid=0)
  ours = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  assert count == ours + 1000 * model.width + 1000 == published
  public_weights.check(public_weights.answer(model, images), expected)


# PyTorch.


def shapes(section):
  """Name -> shape of all that an encoder at its full size has."""
  make = lambda: build.build(section, "affjax.models", image_size=224, rngs=nnx.Rngs(0))
  flat = nnx.to_flat_state(nnx.state(nnx.eval_shape(make), (nnx.Param, nnx.BatchStat)))
  return {"/".join(map(str, path)): x.shape for path, x in flat}


@pytest.mark.parametrize(
  ("make", "published"),
  [
    # With the auxiliary head, which is beside the network.
    (torch_concatenating.Inception, 27_161_264),
    (torch_concatenating.Dense, 7_978_856),
  ],
)
def test_everything_that_torchvision_names_has_its_place_at_full_size(make, published):
  with torch.device("meta"):
    model = make()
  assert sum(p.numel() for p in model.parameters()) == published
  # Arrays of one number, that stands at every place.
  one = np.zeros((), np.float32)
  named = {k: np.broadcast_to(one, tuple(v.shape)) for k, v in model.state_dict().items()}
  public = weights.convert(named)
  section = dict(public.encoder)
  if "norm" in section:
    section["norm"] = "batch"
  assert {name: array.shape for name, array in public.arrays.items()} == shapes(section)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [("Inception", 107), ("Dense", 97)])
def test_full_networks_of_pytorch_have_the_same_last_map(make, size):
  # Of sizes that leave rows over where maps are halved.
  model = getattr(torch_concatenating, make)()
  named, images = (
    public_weights.draw(torch_references.shapes(model), 2),
    public_weights.images(size),
  )
  expected = torch_references.run(model, named, images)
  ours = public_weights.encoder(weights.convert(named), size, grid=0)
  public_weights.check(public_weights.answer(ours, images), expected)
