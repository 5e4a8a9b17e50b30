import jax
import jax.numpy as jnp
import numpy as np
import public_weights
import pytest
from flax import nnx
from public_weights import answer

from affjax.models import affect, convolutions, resnet, weights
from affjax.procedures import supervised

# With a classifier of 1000 classes, as the documentation of frameworks has them; SE-ResNet-50's
# from memory (RECALL).
PUBLISHED = {(18, False): 11_689_512, (50, False): 25_557_032, (50, True): 28_088_024}
# Of 112 pixels with an embedding of 512 numbers: insightface, face.evoLVe's IR-50 and IR-SE-50,
# in millions (RECALL).
FACES = {("improved", False): 43.6, ("evolve", False): 43.6, ("evolve", True): 43.8}


def shapes(**options):
  make = lambda: resnet.ResNet(**({"image_size": 224} | options), rngs=nnx.Rngs(0))
  return nnx.eval_shape(make)


def count(module):
  return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def named(module):
  flat = nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))
  return {"/".join(map(str, path)): x for path, x in flat}


@pytest.mark.parametrize(("depth", "gates"), PUBLISHED)
def test_full_sizes_have_as_many_parameters_as_are_published(depth, gates):
  model = shapes(depth=depth, gates=gates)
  assert model.width == (2048 if depth == 50 else 512)
  assert count(model) + 1000 * model.width + 1000 == PUBLISHED[depth, gates]


@pytest.mark.parametrize(("kind", "gates"), FACES)
def test_networks_of_faces_have_about_as_many_parameters_as_is_remembered(kind, gates):
  model = shapes(image_size=112, depth=50, kind=kind, gates=gates, embedding=512)
  assert (model.width, model.num_tokens) == (512, 1)
  assert count(model) / 1e6 == pytest.approx(FACES[kind, gates], abs=0.05)


@pytest.mark.parametrize(
  ("options", "blocks", "side", "width"),
  [
    (dict(stages=1), 2, 56, 64),
    (dict(stages=2), 4, 28, 128),
    (dict(stages=3), 6, 14, 256),
    (dict(stages=4), 8, 7, 512),
    (dict(depth=50, stages=2), 7, 28, 512),
    (dict(depth=34, stages=2, kind="improved", image_size=112), 7, 28, 128),
    # The first 21 units of IR-50 end with its third stage.
    (dict(depth=50, stages=3, kind="evolve", image_size=112), 21, 14, 256),
  ],
)
def test_stages_have_the_sizes_of_the_papers_tables(options, blocks, side, width):
  model = shapes(grid=0, norm="group", dtype="bfloat16", **options)
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x, attention=True)
  size = model.image_size
  tokens, maps = jax.eval_shape(run, state, jnp.zeros((2, size, size, 3)))
  assert len(model.blocks) == blocks
  assert tokens.shape == (2, side * side, width) == (2, model.num_tokens, model.width)
  assert tokens.dtype == jnp.bfloat16
  assert maps == {}


def test_wrong_options_are_refused_by_name():
  for options, says in (
    (dict(depth=101), r"depth 101 of a ResNet: use one of \[18, 34, 50\]"),
    (dict(kind="pre"), "kind 'pre' of a ResNet.*'original', 'improved', 'evolve'"),
    (dict(norm="layer"), "norm 'layer' of a ResNet.*'batch', 'group', 'none'"),
    (dict(stride_in="5x5"), "stride_in '5x5' of a ResNet.*'3x3', '1x1'"),
    (dict(stages=0), "stages 0 of a ResNet: it has 1 to 4"),
    (dict(stages=5), "stages 5 of a ResNet: it has 1 to 4"),
    (dict(embedding=-1), "embedding -1 of a ResNet"),
    (dict(kind="evolve", norm="none"), "norm 'none' of a ResNet of kind 'evolve'.*'group'"),
    (dict(grid=8), "grid 8 of ResNet: its last map of 224 x 224 pixels is 7 x 7"),
    (dict(embedding=8, grid=2), "grid 2 of ResNet: its last map of 224 x 224 pixels is 1 x 1"),
  ):
    with pytest.raises(ValueError, match=says):
      shapes(**options)


def test_narrow_networks_with_public_names_answer_as_in_pytorch():
  public_weights.check_golden("resnet")


LAYER = dict(norm="batch", epsilon=1e-5, momentum=0.9, dtype=jnp.float32)
X = np.random.default_rng(1).normal(size=(2, 6, 6, 32)).astype(np.float32)


def block(kind, gate=False, stride=1):
  """A block of 32 channels."""
  make, options = {
    "basic": (resnet.Block, dict(bottleneck=None)),
    "bottleneck": (resnet.Block, dict(bottleneck="3x3")),
    "bottleneck of the paper": (resnet.Block, dict(bottleneck="1x1")),
    "improved": (resnet.Improved, dict(lean=False)),
    "evolve": (resnet.Improved, dict(lean=True)),
  }[kind]
  width = 8 if "bottleneck" in kind else 32
  options |= dict(gate=gate, **LAYER)
  return public_weights.drawn(lambda: make(32, width, stride, **options, rngs=nnx.Rngs(0)))


def given(module, other):
  """A module with the numbers of another, as far as it has them."""
  theirs = named(other)
  for name, variable in named(module).items():
    variable[...] = theirs[name][...]
  return module


@pytest.mark.parametrize("kind", ["bottleneck", "evolve"])
def test_a_gate_that_is_open_wide_is_the_identity(kind):
  gated = block(kind, gate=True)
  plain, gate = given(block(kind), gated), gated.gate
  expected, found = (answer(b, X, train=False) for b in (plain, gated))
  assert np.abs(found - expected).max() > 0.1
  if gate.expand.bias is not None:
    gate.expand.bias[...] = jnp.full(32, 40.0)
    np.testing.assert_allclose(answer(gated, X, train=False), expected, atol=1e-5)
  else:  # without biases it is half open where it is 0
    gate.expand.kernel[...] = jnp.zeros_like(gate.expand.kernel[...])
    found = answer(gated, X, train=False)
    np.testing.assert_allclose(X + 2 * (found - X), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["basic", "improved"])
def test_a_block_whose_last_norm_is_zero_is_its_shortcut(kind):
  module = block(kind)
  last = module.layers[-1] if kind == "basic" else module.last
  last.norm.scale[...], last.bias[...] = jnp.zeros(32), jnp.zeros(32)
  expected = np.maximum(X, 0) if kind == "basic" else X
  np.testing.assert_array_equal(answer(module, X, train=False), expected)


def test_a_gate_is_the_formula_of_squeeze_and_excitation():
  options = dict(activation=jax.nn.relu, use_bias=False)
  make = lambda: convolutions.Gate(32, 2, jnp.float32, nnx.Rngs(1), **options)
  gate = public_weights.drawn(make)
  inside = np.maximum(X.mean((1, 2)) @ np.asarray(gate.reduce.kernel[...]), 0)
  factor = 1 / (1 + np.exp(-inside @ np.asarray(gate.expand.kernel[...])))
  np.testing.assert_allclose(answer(gate, X), X * factor[:, None, None], atol=1e-5)
  assert gate.reduce.bias is None


def test_where_the_stride_is_makes_another_network_of_the_same_weights():
  first = block("bottleneck of the paper", stride=2)
  second = given(block("bottleneck", stride=2), first)
  found, other = (answer(block, X, train=False) for block in (first, second))
  assert found.shape == other.shape == (2, 3, 3, 32)
  assert np.abs(found - other).max() > 0.1
  # In the first convolution, the places between are never seen.
  between = X.copy()
  between[:, 1::2] += 1
  np.testing.assert_array_equal(answer(first, between, train=False), found)
  assert np.abs(answer(second, between, train=False) - other).max() > 0.1


def test_prelu_lets_a_share_of_what_is_below_zero_through():
  layer = resnet.PReLU(32)
  np.testing.assert_allclose(answer(layer, X), np.where(X > 0, X, 0.25 * X), rtol=1e-6)
  layer.slope[...] = jnp.arange(32) / 32
  expected = np.where(X > 0, X, X * np.arange(32, dtype=np.float32) / 32)
  np.testing.assert_allclose(answer(layer, X), expected, rtol=1e-6)


def test_folded_batch_norms_answer_as_those_that_are_not():
  options = dict(image_size=32, multiplier=0.125, stages=1)
  make = lambda norm: lambda: resnet.ResNet(**options, norm=norm, rngs=nnx.Rngs(0))
  model, folded = (public_weights.drawn(make(norm)) for norm in ("batch", "none"))
  arrays = {name: np.asarray(x[...]) for name, x in named(model).items()}
  # Small variances, so that the epsilon matters.
  arrays |= {name: 1e-2 * x for name, x in arrays.items() if name.endswith("/var")}
  weights.fill(model, arrays)
  images = public_weights.images(32)
  expected = answer(model, images)
  weights.fill(folded, weights.fold(arrays, model.epsilon))
  public_weights.check(answer(folded, images), expected)
  weights.fill(folded, weights.fold(arrays))
  with pytest.raises(AssertionError, match="Not equal to tolerance"):
    public_weights.check(answer(folded, images), expected)


def stem_and_first_block(parameters):
  """Which of {"model": parameters} are frozen."""
  one = lambda path, _: path[1].key == "stem" or [k.key for k in path[1:3]] == ["blocks", 0]
  return jax.tree.map_with_path(one, parameters)


@pytest.mark.parametrize("kind", ["original", "improved"])
def test_training_moves_the_statistics_and_a_frozen_norm_keeps_them(kind):
  options = dict(image_size=16, multiplier=0.125, stages=1, kind=kind)
  model = public_weights.drawn(lambda: resnet.ResNet(**options, rngs=nnx.Rngs(0)))
  supervised.hold_statistics(model, stem_and_first_block)
  before = {name: np.asarray(x[...]) for name, x in named(model).items()}
  graph, state = nnx.split(model)

  @jax.jit
  def train(state, x):
    model = nnx.merge(graph, state)
    model(x, train=True)
    return nnx.state(model)

  nnx.update(model, train(state, public_weights.images(16, batch=4)))
  moved = {name for name, x in named(model).items() if (np.asarray(x[...]) != before[name]).any()}
  statistics = {name for name in before if name.endswith(("/mean", "/var"))}
  assert moved == {name for name in statistics if not name.startswith(("stem/", "blocks/0/"))}
  assert moved


def test_it_is_an_encoder_with_a_token_for_a_decoder():
  make = lambda: affect.AffectModel(
    encoder=dict(name="resnet.ResNet", depth=50, kind="evolve", gates=True, embedding=64),
    decoder=dict(name="decoders.Linear"), outputs={"expression": 8}, image_size=32,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  model = nnx.eval_shape(make)
  assert (model.encoder.width, model.encoder.num_tokens) == (64, 1)
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x)
  outputs = jax.eval_shape(run, state, jnp.zeros((2, 32, 32, 3)))
  assert outputs["expression"].shape == (2, 8)


# Public names.


def torchvision(depth=18, width=8, gates=False):
  """Shapes under torchvision's names."""
  found = {"conv1.weight": (width, 3, 7, 7)} | norm_of_torch("bn1", width)
  inner = width
  for stage, repeats in enumerate((2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3), 1):
    own = width << (stage - 1)
    outer = 4 * own if depth == 50 else own
    for index in range(repeats):
      block = f"layer{stage}.{index}"
      sizes = [(own, inner, 3, 3), (own, own, 3, 3)]
      if depth == 50:
        sizes = [(own, inner, 1, 1), (own, own, 3, 3), (outer, own, 1, 1)]
      for number, size in enumerate(sizes, 1):
        found |= {f"{block}.conv{number}.weight": size}
        found |= norm_of_torch(f"{block}.bn{number}", size[0])
      if gates:
        inside = outer // 16
        found |= {
          f"{block}.se.fc1.weight": (inside, outer, 1, 1),
          f"{block}.se.fc1.bias": (inside,),
        }
        found |= {f"{block}.se.fc2.weight": (outer, inside, 1, 1), f"{block}.se.fc2.bias": (outer,)}
      if index == 0 and (stage > 1 or inner != outer):
        found |= {f"{block}.downsample.0.weight": (outer, inner, 1, 1)}
        found |= norm_of_torch(f"{block}.downsample.1", outer)
      inner = outer
  return found | {"fc.weight": (10, inner), "fc.bias": (10,)}


def norm_of_torch(name, channels):
  parts = ("weight", "bias", "running_mean", "running_var")
  return {f"{name}.{part}": (channels,) for part in parts} | {f"{name}.num_batches_tracked": ()}


@pytest.mark.parametrize(("depth", "gates"), [(18, False), (34, False), (50, True)])
def test_public_names_say_which_encoder_they_need(depth, gates):
  arrays = public_weights.draw(torchvision(depth, gates=gates))
  public = weights.convert(arrays).seen_through("imagenet")
  section = public.encoder
  np.testing.assert_allclose(section.pop("centre"), [-0.03, -0.088, -0.188], atol=1e-6)
  assert section == dict(
    name="resnet.ResNet", kind="original", depth=depth, gates=gates, stages=4, multiplier=0.125,
    embedding=0, stride_in="3x3", norm=["batch", "none"],
  )  # fmt: skip
  own = named(shapes(depth=depth, gates=gates, multiplier=0.125))
  assert {name: x.shape for name, x in own.items()} == {
    name: x.shape for name, x in public.arrays.items()
  }
  for theirs, ours in (
    ("layer3.1.bn2.running_mean", f"blocks/{5 if depth == 18 else 8}/layers/1/norm/mean"),
    ("layer4.0.downsample.1.bias", f"blocks/{6 if depth == 18 else 13}/shortcut/bias"),
  ):
    np.testing.assert_array_equal(public.arrays[ours], arrays[theirs])


def test_weights_of_the_first_stages_alone_are_taken_too():
  arrays = public_weights.draw(torchvision(34))
  cut = {n: x for n, x in arrays.items() if not n.startswith(("layer3", "layer4", "fc"))}
  assert weights.convert(cut).encoder["stages"] == 2


def test_what_is_no_resnet_is_said():
  arrays = public_weights.draw(torchvision())
  one = np.ones(3, np.float32)
  without = lambda part: {name: x for name, x in arrays.items() if part not in name}
  for wrong, says in (
    (arrays | {"layer1.0.conv4.weight": one}, "^layer1.0.conv4.weight: no parameters of a ResNet"),
    (without("layer2.1"), r"no ResNet of depth \[18, 34, 50\] has 7 blocks of these sizes"),
    ({"layer1.0.conv1.weight": one}, "no ResNet of depth .* has 1 blocks"),
    ({"layer1.0.prelu.weight": one}, "no ResNet of depth .* has 1 blocks"),
    ({"body.0.res_layer.1.weight": one}, "no ResNet of depth .* has 1 blocks"),
    ({"body.0.res_layer.1.weight": one, "body.0.other": one}, "^body.0.other: no parameters of an"),
    (
      {"body.0.res_layer.1.weight": one, "output_layer.3.weight": one},
      "named as in face.evoLVe, lack embedding/norm/bias",
    ),
  ):
    with pytest.raises(ValueError, match=says):
      weights.convert(wrong)
