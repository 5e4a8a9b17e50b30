import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_reference
from flax import nnx

from affjax.models import layers, vit

GOLDENS = Path(__file__).parent / "goldens"
SMALL = dict(image_size=32, variant="mu/8", width=32, depth=2, num_heads=2)


def images(size=32, batch=2, seed=0):
  return jax.random.uniform(jax.random.key(seed), (batch, size, size, 3), minval=-1, maxval=1)


@functools.cache
def small(**options):
  return vit.ViT(**{**SMALL, **options}, rngs=nnx.Rngs(0))


def num_parameters(model):
  return sum(x.size for x in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param))))


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_patch_becomes_a_token_and_parameters_stay_float32(stem, dtype):
  model = small(stem=stem, dtype=dtype)
  tokens = jax.jit(lambda x: model(x))(images())
  assert tokens.shape == (2, model.num_tokens, model.width) == (2, 16, 32)
  assert tokens.dtype == dtype
  assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
  # A last layer norm has been applied.
  tokens = np.asarray(tokens, np.float32)
  np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-2)
  np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-2)


@pytest.mark.parametrize(
  ("variant", "image_size", "expected"),
  [
    # Published, with head and class token: 22,050,664 and 86,567,656 at 224 pixels.
    ("S/16", 224, 22_050_664 - 385_000 - 2 * 384),
    ("B/16", 224, 86_567_656 - 769_000 - 2 * 768),
    ("S/16", 112, 22_050_664 - 385_000 - 2 * 384 - (196 - 49) * 384),
    # Published, at patches of 16: 304,326,632. Those of 14 hold fewer pixels, at 256 places.
    ("L/16", 224, 304_326_632 - 1_025_000 - 2 * 1024),
    ("L/14", 224, 304_326_632 - 1_025_000 - 2 * 1024 + (256 - 196 - 3 * (16**2 - 14**2)) * 1024),
    ("mu/8", 48, 469_536),
  ],
)
def test_full_sizes_have_the_published_number_of_parameters(variant, image_size, expected):
  model = nnx.eval_shape(lambda: vit.ViT(image_size=image_size, variant=variant, rngs=nnx.Rngs(0)))
  assert num_parameters(model) == expected


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(variant="X/7"), r"variant 'X/7': use one of \['mu', 'Ti', 'S', 'B', 'L'\]"),
    (dict(variant="S"), "variant 'S'"),
    (dict(variant="S/7"), "variant 'S/7'"),
    (dict(image_size=50), "image_size 50 is not a multiple .* use image_size 48"),
    (dict(stem="cnn"), r"stem 'cnn': use one of \['patch', 'conv', 'residual'\]"),
    (dict(stem="residual", width=33, num_heads=3), "patch size 8 or width 33 is not even"),
    (dict(image_size=48, variant="mu/12", stem="conv"), "stem 'conv' needs a patch size of"),
    (dict(gelu="erf"), r"gelu 'erf': use one of \['tanh', 'exact'\]"),
    (dict(registers=-1), "registers -1: use 0 or more"),
    (dict(num_heads=5), "width 32 is not a multiple of num_heads 5"),
  ],
)
def test_impossible_models_are_errors_that_say_what_to_change(options, message):
  with pytest.raises(ValueError, match=message):
    vit.ViT(**{**SMALL, **options}, rngs=nnx.Rngs(0))


def test_images_of_another_size_or_type_are_errors():
  with pytest.raises(ValueError, match=r"\(2, 48, 48, 3\) .* built for \[batch, \*\(32, 32, 3\)\]"):
    small()(images(48))
  with pytest.raises(ValueError, match="dtype uint8: scale them"):
    small()(jnp.zeros((2, 32, 32, 3), jnp.uint8))


def test_the_patch_stem_is_a_strided_convolution():
  stem = vit.PatchStem(8, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
  kernel = stem.dense.kernel[...].reshape(8, 8, 3, 16)
  expected = jax.lax.conv_general_dilated(
    images(), kernel, (8, 8), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(stem(images()), expected.reshape(2, 16, 16), atol=1e-5)


def test_what_blocks_add_starts_scaled_channel_by_channel():
  x = jax.random.normal(jax.random.key(1), (2, 5, 32))
  plain, scaled = (
    layers.Block(32, 2, layer_scale=value, rngs=nnx.Rngs(0)) for value in (0.0, 1e-3)
  )
  np.testing.assert_allclose(scaled(x)[0], x, atol=1e-2)
  assert not np.allclose(plain(x)[0], x, atol=1e-1)
  scaled.scales.attention[...] = jnp.ones(32)
  scaled.scales.mlp[...] = jnp.ones(32)
  np.testing.assert_allclose(scaled(x)[0], plain(x)[0], atol=1e-6)


def test_a_residual_stem_sees_beyond_its_patch_and_keeps_rows_in_order():
  stem = vit.ResidualStem(8, 16, 1, dtype=jnp.float32, rngs=nnx.Rngs(0))
  stem = jax.jit(stem)
  change = np.abs(stem(images().at[:, 12, 20].add(1.0)) - stem(images())).sum((0, 2)).reshape(4, 4)
  assert change.argmax() == 1 * 4 + 2  # the patch of row 12 and column 20
  assert change[1, 1] > 0


def test_without_positions_permuting_patches_permutes_tokens():
  model = nnx.clone(small())
  model.positions[...] = jnp.zeros_like(model.positions[...])
  flipped = lambda x: x.reshape(2, 4, 8, 4, 8, 3)[:, ::-1, :, ::-1].reshape(2, 32, 32, 3)
  tokens = model(images())
  np.testing.assert_allclose(model(flipped(images())), tokens[:, ::-1], atol=1e-5)
  assert not np.allclose(small()(flipped(images())), small()(images())[:, ::-1], atol=1e-2)


def test_attention_is_the_textbook_formula_and_its_rows_sum_to_one():
  layer = layers.Attention(8, 2, rngs=nnx.Rngs(0))
  x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
  y, maps = layer(x, attention=True)
  query, key, value = np.split(x @ np.array(layer.query_key_value.kernel), 3, axis=-1)
  expected = []
  for head in (slice(0, 4), slice(4, 8)):
    weights = np.exp(query[..., head] @ key[..., head].swapaxes(1, 2) / 2)
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(maps[:, head.start // 4], weights, atol=1e-5)
    expected.append(weights @ value[..., head])
  expected = np.concatenate(expected, axis=-1) @ np.array(layer.out.kernel)
  np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_maps_come_on_request_with_rows_that_sum_to_one(dtype):
  model = small(dtype=dtype)
  tokens, maps = model(images(), attention=True)
  assert maps.shape == (2, 2, 2, 16, 16)
  assert maps.dtype == jnp.float32
  np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)
  np.testing.assert_array_equal(tokens, model(images()))


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
  drop_path = layers.DropPath(0.25)
  y = drop_path(jnp.ones((4000, 2, 3)), deterministic=False, rngs=nnx.Rngs(dropout=0))
  assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
  assert (y == y[:, :1, :1]).all()
  assert abs(y.mean() - 1) < 0.05


def test_one_graphdef_serves_training_and_evaluation():
  model = small(dropout_rate=0.2, drop_path_rate=0.2)
  graphdef, parameters, rest = nnx.split(model, nnx.Param, ...)
  parameters = nnx.to_pure_dict(parameters)
  assert nnx.to_pure_dict(rest) == {}  # no key, no counter: nothing that a resume could lose

  @functools.partial(jax.jit, static_argnames="train")
  def apply(parameters, key, train):
    model = nnx.merge(graphdef, parameters, {})
    tokens = model(images(), train=train, rngs=nnx.Rngs(dropout=key))
    return tokens, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

  run = lambda seed, train: np.asarray(apply(parameters, jax.random.key(seed), train=train)[0])
  np.testing.assert_array_equal(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, True), run(0, True))
  assert not np.allclose(run(0, True), run(1, True))
  assert not np.allclose(run(0, True), run(0, False))
  np.testing.assert_allclose(run(0, False), model(images()), atol=1e-5)
  assert apply(parameters, jax.random.key(0), train=True)[1] == {}


def test_training_with_dropout_needs_rngs():
  with pytest.raises(ValueError, match="rngs"):
    small(dropout_rate=0.2, drop_path_rate=0.2)(images(), train=True)


@pytest.mark.parametrize("name", ["vit", "vit_registers"])
def test_the_weights_of_transformers_give_its_numbers(name):
  with np.load(GOLDENS / f"{name}.npz") as file:
    golden = dict(file)
  arrays = {k.removeprefix("weights/"): v for k, v in golden.items() if k.startswith("weights/")}
  options = json.loads(str(golden["options"]))
  vit_reference.check(options, arrays, golden["images"], golden["hidden"], golden["tokens"])
