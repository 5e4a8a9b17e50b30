import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affjax.models import affect, convolutions, efficientnet, weights

# Of the published networks, with a classifier of 1000 classes: millions in table 8 of the paper and
# in the authors' list of the lite ones, to the digit as in their checkpoints.
PUBLISHED = {
  "b0": (5.3, 5_288_548), "b1": (7.8, 7_794_184), "b2": (9.2, 9_109_994), "b3": (12, 12_233_232),
  "b4": (19, 19_341_616), "b5": (30, 30_389_784), "b6": (43, 43_040_704), "b7": (66, 66_347_960),
  "lite0": (4.7, 4_652_008), "lite1": (5.4, 5_416_680), "lite2": (6.1, 6_092_072),
  "lite3": (8.2, 8_197_096), "lite4": (13.0, 13_006_568),
}  # fmt: skip


def images(size, batch=2, seed=0):
  return jax.random.uniform(jax.random.key(seed), (batch, size, size, 3), minval=-1, maxval=1)


def shapes(**options):
  make = lambda: efficientnet.EfficientNet(image_size=224, **options, rngs=nnx.Rngs(0))
  return nnx.eval_shape(make)


SLOW = PUBLISHED.keys() - {"b0", "lite0", "lite2"}


@pytest.mark.parametrize(
  "variant",
  [pytest.param(v, marks=[pytest.mark.slow] if v in SLOW else []) for v in PUBLISHED],
)
def test_full_sizes_have_as_many_parameters_as_are_published(variant):
  # Scales and biases of batch norms count, their means and variances do not.
  model = shapes(variant=variant)
  count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
  count += 1000 * model.width + 1000
  millions, exact = PUBLISHED[variant]
  assert count == exact
  assert count / 1e6 == pytest.approx(millions, rel=0.03)
  flat = nnx.to_flat_state(nnx.state(model))
  assert efficientnet.variant_of({"/".join(map(str, k)): v.shape for k, v in flat}) == variant


def test_maps_become_a_grid_of_tokens_in_the_dtype_that_is_asked_for():
  model = shapes(grid=2, norm="group", dtype="bfloat16")
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x, train=True, attention=True)
  tokens, maps = jax.eval_shape(run, state, images(224))
  assert tokens.shape == (2, model.num_tokens, model.width) == (2, 4, 1280)
  assert tokens.dtype == jnp.bfloat16
  assert maps == {}


def test_wrong_options_are_refused_by_name():
  with pytest.raises(ValueError, match="variant 'lite9'.*'b0'.*'lite4'"):
    shapes(variant="lite9")
  with pytest.raises(ValueError, match="norm 'layer'.*'batch', 'group', 'none'"):
    shapes(norm="layer")
  with pytest.raises(ValueError, match="grid 8 of .*224 x 224 pixels is 7 x 7"):
    shapes(grid=8)
  with pytest.raises(ValueError, match="no EfficientNet of .* has 1 blocks"):
    efficientnet.variant_of({"blocks/0/project/bias": (3,)})


def random_statistics(model, seed=0):
  """Gives norms statistics, and all biases and scales values, that are no two alike."""
  rng = np.random.default_rng(seed)
  for path, variable in nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat))):
    if path[-1] != "kernel":
      near = {"var": 1.0, "scale": 1.0}.get(path[-1], 0.0)
      values = near + rng.uniform(-0.4, 0.4, variable.shape)
      variable[...] = jnp.asarray(values, jnp.float32)
  return model


def named(model):
  flat = nnx.to_flat_state(nnx.state(model, (nnx.Param, nnx.BatchStat)))
  return {"/".join(map(str, path)): np.asarray(x[...]) for path, x in flat}


def answer(module, x, **options):
  """What a module makes of x, compiled as one program: op by op takes longer."""
  graph, state = nnx.split(module)
  return jax.jit(lambda state, x: nnx.merge(graph, state)(x, **options))(state, x)


BLOCK = dict(gate=False, activation=convolutions.relu6, dtype=jnp.float32)


def test_folded_batch_norms_answer_as_those_that_are_not():
  make = lambda norm: efficientnet.Block(
    8, 16, 5, 2, 3, drop_path_rate=0.0, norm=norm, **BLOCK, rngs=nnx.Rngs(0)
  )
  block, folded = random_statistics(make("batch")), make("none")
  weights.fill(folded, weights.fold(named(block)))
  x = jax.random.normal(jax.random.key(0), (2, 9, 9, 8))
  expected, found = (answer(b, x, train=False, rngs=None) for b in (block, folded))
  assert float(expected.std()) > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5)
  without = {k: v for k, v in named(block).items() if k != "expand/norm/var"}
  with pytest.raises(ValueError, match="the weights lack expand/norm/var beside expand/norm/mean"):
    weights.fold(without)


def test_training_normalises_by_the_batch_and_moves_the_statistics():
  layer = convolutions.Convolution((3, 4), norm="batch", dtype=jnp.float32, rngs=nnx.Rngs(0))
  x = 2 * images(5) + 3
  y = layer(x, train=True)
  np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-2)
  plain = np.asarray(x) @ np.asarray(layer.kernel[...])
  np.testing.assert_allclose(layer.norm.mean[...], 0.01 * plain.mean((0, 1, 2)), rtol=1e-4)
  np.testing.assert_allclose(layer.norm.var[...], 0.99 + 0.01 * plain.var((0, 1, 2)), rtol=1e-4)
  # Later it takes what it has kept.
  expected = (plain - np.asarray(layer.norm.mean[...])) / np.sqrt(layer.norm.var[...] + 1e-3)
  np.testing.assert_allclose(layer(x), expected, atol=1e-4)


def test_a_gate_is_the_formula_of_squeeze_and_excitation():
  gate = efficientnet.Gate(8, 3, jnp.float32, nnx.Rngs(1))
  x = jax.random.normal(jax.random.key(0), (2, 4, 5, 8))
  dense = lambda y, layer: y @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
  sigmoid = lambda y: 1 / (1 + np.exp(-y))
  inside = dense(np.asarray(x).mean((1, 2)), gate.reduce)
  factor = sigmoid(dense(inside * sigmoid(inside), gate.expand))
  np.testing.assert_allclose(answer(gate, x), x * factor[:, None, None], atol=1e-5)


def test_a_block_is_left_out_of_a_sample_wholly_or_not_at_all():
  options = BLOCK | dict(norm="none", drop_path_rate=0.5)
  block = efficientnet.Block(8, 8, 3, 1, 2, **options, rngs=nnx.Rngs(0))
  x = jax.random.normal(jax.random.key(0), (64, 3, 3, 8))
  added = np.asarray(answer(block, x, train=False, rngs=None)) - x
  graph, state = nnx.split((block, nnx.Rngs(dropout=1)))

  @jax.jit
  def train(state, x):
    block, rngs = nnx.merge(graph, state)
    return block(x, train=True, rngs=rngs)

  found = np.asarray(train(state, x)) - x
  kept = np.abs(found).max((1, 2, 3)) > 0
  assert 20 < kept.sum() < 44
  np.testing.assert_allclose(found[kept], 2 * added[kept], atol=1e-5)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_shifted_products_are_a_convolution_of_each_channel(kernel, size, stride):
  x = jax.random.normal(jax.random.key(1), (2, size, size, 4))
  kernel = jax.random.normal(jax.random.key(2), (kernel, kernel, 4))
  expected = jax.lax.conv_general_dilated(
    x, kernel[:, :, None], (stride, stride), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4, precision="highest",
  )  # fmt: skip
  np.testing.assert_allclose(
    jax.jit(convolutions.depthwise, static_argnums=2)(x, kernel, stride), expected, atol=1e-5
  )


def test_a_grid_that_does_not_divide_the_map_still_has_its_mean():
  x = jax.random.normal(jax.random.key(0), (2, 7, 7, 3))
  average = jax.jit(convolutions.cells, static_argnums=1)
  cells = average(x, 3)
  np.testing.assert_allclose(cells.mean(1), x.mean((1, 2)), atol=1e-6)
  corner = np.zeros((1, 7, 7, 1), np.float32)
  corner[0, 0, 0] = 1
  cells = average(jnp.asarray(corner), 3)
  np.testing.assert_allclose(cells[0, 1:], 0)
  assert cells[0, 0, 0] == pytest.approx((3 / 7) ** 2)


def test_it_is_an_encoder_whose_statistics_are_no_parameters():
  make = lambda: affect.AffectModel(
    encoder=dict(name="efficientnet.EfficientNet", variant="b0", grid=2),
    decoder=dict(name="decoders.Linear"), outputs={"expression": 8}, image_size=64,
    rngs=nnx.Rngs(0),
  )  # fmt: skip
  model = nnx.eval_shape(make)
  assert (model.encoder.width, model.encoder.num_tokens) == (1280, 4)
  names = ["/".join(map(str, k)) for k, _ in nnx.to_flat_state(nnx.state(model, nnx.BatchStat))]
  assert "encoder/blocks/3/depthwise/norm/mean" in names
  assert all(name.split("/")[-1] in ("mean", "var") for name in names)
  assert len(names) == 2 * (1 + 2 + 15 * 3 + 1)
