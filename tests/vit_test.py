import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_reference
from flax import nnx

from affjax import cost
from affjax.models import layers, vit, weights

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


ALL = dict(class_token=True, registers=2, layer_scale=0.5, dropout_rate=0.1, drop_path_rate=0.5)


def flat(tree):
  """Parameters or their gradients, by the names that `weights` uses."""
  return {"/".join(map(str, path)): x for path, x in nnx.traversals.flatten_mapping(tree).items()}


def unflat(arrays):
  """The tree that `flat` was given."""
  path = lambda name: tuple(int(part) if part.isdigit() else part for part in name.split("/"))
  return nnx.traversals.unflatten_mapping({path(name): x for name, x in arrays.items()})


def loss_and_gradient(**options):
  """Of all that a model of the same weights gives in training, maps and extra tokens included."""
  model = nnx.eval_shape(lambda: vit.ViT(**{**SMALL, **ALL, **options}, rngs=nnx.Rngs(0)))
  parameters = flat(nnx.to_pure_dict(nnx.state(small(**ALL), nnx.Param)))
  parameters = unflat(weights.fit(parameters, model))
  extra = jax.random.normal(jax.random.key(1), (2, 3, 32))

  @jax.jit
  @jax.value_and_grad
  def run(parameters):
    rngs = nnx.Rngs(dropout=7)
    tokens, maps = nnx.merge(nnx.graphdef(model), parameters)(
      images(), extra=extra, train=True, rngs=rngs, attention=True
    )
    # What the stream gives next is part of the result: as many numbers were drawn.
    weight = jax.random.normal(rngs.dropout(), tokens.shape)
    return (tokens**3 * weight).mean() + (maps**2).mean()

  loss, gradient = run(parameters)
  return loss, weights.unstack(flat(gradient))


plain_loss_and_gradient = functools.cache(loss_and_gradient)


@pytest.mark.parametrize(
  "options", [dict(remat=True), dict(scan=True), dict(remat=True, scan=True)]
)
def test_remat_and_scan_change_nothing_not_even_what_is_dropped(options):
  loss, gradient = loss_and_gradient(**options)
  expected, expected_gradient = plain_loss_and_gradient()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert gradient.keys() == expected_gradient.keys()
  for name, value in expected_gradient.items():
    assert np.abs(value).max() > 0, name
    np.testing.assert_allclose(gradient[name], value, atol=2e-6, rtol=1e-4, err_msg=name)


def test_scanned_and_unrolled_models_of_one_seed_start_alike_and_are_of_one_size():
  unrolled, scanned = (
    nnx.to_pure_dict(nnx.state(small(scan=scan, registers=1))) for scan in (False, True)
  )
  expected = weights.stack(flat(unrolled))
  assert expected["blocks/mlp/expand/kernel"].shape == (2, 32, 128)
  assert flat(scanned).keys() == expected.keys()
  for name, value in flat(scanned).items():
    np.testing.assert_array_equal(value, expected[name])


def abstract(**options):
  """The function of a model's parameters that encodes images, and shapes of them."""
  model = nnx.eval_shape(lambda: vit.ViT(**{**SMALL, **options}, rngs=nnx.Rngs(0)))
  graphdef, parameters = nnx.split(model)
  return lambda p: nnx.merge(graphdef, p)(images()), nnx.to_pure_dict(parameters)


def test_the_program_of_a_scanned_model_is_as_long_whatever_its_depth():
  def lines(**options):
    run, parameters = abstract(**options)
    return len(jax.jit(run).lower(parameters).as_text().splitlines())

  assert lines(depth=12, scan=True) == lines(depth=2, scan=True) < lines(depth=12) / 4


def test_remat_keeps_less_for_the_backward_pass():
  def kept(**options):
    run, parameters = abstract(depth=8, **options)
    backward = jax.eval_shape(lambda p: jax.vjp(run, p)[1], parameters)
    return sum(x.size for x in jax.tree.leaves(backward))

  parameters = sum(x.size for x in jax.tree.leaves(abstract(depth=8)[1]))
  for scan in (False, True):
    assert kept(remat=True, scan=scan) < parameters + (kept(scan=scan) - parameters) / 4


@pytest.mark.parametrize("keep", [0.0, 0.75, 1.0])
def test_a_rate_known_only_while_running_drops_what_a_known_one_does(keep):
  @jax.jit
  def run(x, keep):
    rngs = nnx.Rngs(dropout=0)
    y = layers.DropPath(0.5)(x, deterministic=False, rngs=rngs, keep=keep)
    return (y**2).sum(), (y, rngs.dropout())

  x, rngs = jax.random.normal(jax.random.key(0), (64, 2, 3)), nnx.Rngs(dropout=0)
  (_, (y, after)), gradient = jax.value_and_grad(run, has_aux=True)(x, keep)
  expected = layers.DropPath(1 - keep)(x, deterministic=False, rngs=rngs)
  np.testing.assert_allclose(y, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, 2 * y / keep if keep else jnp.zeros_like(y), rtol=1e-5)
  assert keep == 0 or after == rngs.dropout()  # as many numbers were drawn
  with pytest.raises(ValueError, match="needs rngs"):
    layers.DropPath(0.5)(x, deterministic=False, keep=jnp.float32(keep))


def test_a_class_token_comes_first_and_has_a_learned_position():
  model = small(class_token=True)
  assert (model.num_tokens, model.num_patches) == (17, 16)
  assert model.positions.shape == (1, 17, 32)
  graphdef, parameters = nnx.split(model)
  parameters = nnx.to_pure_dict(parameters)

  @jax.jit
  def run(positions, x):
    return nnx.merge(graphdef, parameters | {"positions": positions})(x)

  flipped = images().reshape(2, 4, 8, 4, 8, 3)[:, ::-1, :, ::-1].reshape(2, 32, 32, 3)
  positions = jnp.zeros((1, 17, 32)).at[:, 0].set(jax.random.normal(jax.random.key(1), (32,)))
  tokens, of_flipped = run(positions, images()), run(positions, flipped)
  np.testing.assert_allclose(of_flipped[:, 0], tokens[:, 0], atol=1e-5)
  np.testing.assert_allclose(of_flipped[:, 1:], tokens[:, :0:-1], atol=1e-5)
  moved = run(positions.at[:, 0, 0].add(1.0), images())
  assert np.abs(moved - tokens)[:, 0].max() > 1e-2


def test_registers_are_read_and_written_but_never_given():
  model = small(registers=3)
  tokens, maps = jax.jit(lambda x: model(x, attention=True))(images())
  assert tokens.shape == (2, 16, 32) == (2, model.num_tokens, 32)
  assert maps.shape == (2, 2, 2, 19, 19)
  assert not np.allclose(tokens, jax.jit(small())(images()), atol=1e-2)
  # The other parameters are those of the model without.
  expected = flat(nnx.to_pure_dict(nnx.state(small())))
  found = flat(nnx.to_pure_dict(nnx.state(model)))
  assert found.pop("register_tokens").shape == (1, 3, 32)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("scan", [False, True])
def test_permuting_extra_tokens_permutes_what_they_become_and_nothing_else(scan):
  model = small(class_token=True, registers=2, scan=scan)
  run = jax.jit(lambda extra: model(images(), extra=extra, attention=True))
  extra = jax.random.normal(jax.random.key(3), (2, 5, 32))
  order = np.array([3, 0, 4, 2, 1])
  tokens, maps = run(extra)
  assert tokens.shape == (2, 17 + 5, 32)
  assert maps.shape == (2, 2, 2, 17 + 2 + 5, 17 + 2 + 5)
  of_permuted, permuted_maps = run(extra[:, order])
  np.testing.assert_allclose(of_permuted[:, :17], tokens[:, :17], atol=1e-5)
  np.testing.assert_allclose(of_permuted[:, 17:], tokens[:, 17 + order], atol=1e-5)
  # In the maps too they are last.
  order = np.concatenate([np.arange(19), 19 + order])
  np.testing.assert_allclose(permuted_maps, maps[..., order, :][..., order], atol=1e-5)
  assert np.abs(run(extra.at[:, 0, 0].add(9.0))[0] - tokens)[:, :17].max() > 1e-2
  none = jax.jit(model)(images())
  np.testing.assert_allclose(run(extra[:, :0])[0], none, atol=1e-6)


def test_extra_tokens_of_another_size_are_errors():
  for shape in [(2, 3, 31), (1, 3, 32), (3, 32)]:
    with pytest.raises(ValueError, match=r"extra tokens of shape .* \[2, n, 32\]"):
      small()(images(), extra=jnp.zeros(shape))


@pytest.mark.parametrize("scan", [False, True])
def test_all_options_together_keep_rows_of_attention_and_what_is_float32(scan):
  model = small(**ALL, scan=scan, remat=True, gelu="exact", dtype="bfloat16")
  graphdef, parameters = nnx.split(model)
  assert {x.dtype for x in jax.tree.leaves(parameters)} == {jnp.dtype("float32")}
  extra = jnp.zeros((2, 3, 32))

  def run(parameters):
    options = dict(extra=extra, train=True, rngs=nnx.Rngs(dropout=0), attention=True)
    return nnx.merge(graphdef, parameters)(images(), **options)

  tokens, maps = jax.jit(run)(parameters)
  assert (tokens.shape, tokens.dtype) == ((2, 17 + 3, 32), jnp.bfloat16)
  assert maps.dtype == jnp.float32
  np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)
  # Softmax and the norms' statistics: nothing is exponentiated, averaged or rooted in bfloat16.
  program = str(jax.make_jaxpr(run)(parameters))
  for operation in ("exp", "reduce_sum", "reduce_max", "rsqrt"):
    dtypes = re.findall(rf":(\w+)\[[^]]*\] = {operation}\b", program)
    assert set(dtypes) == {"f32"}, operation


def test_positions_of_the_same_grid_stay_as_they_are():
  positions = np.random.default_rng(0).normal(size=(1, 17, 8)).astype(np.float32)
  assert vit.resize_positions(positions, (4, 4), class_token=True) is positions
  with pytest.raises(ValueError, match=r"\(1, 17, 8\) with class_token=False are no square grid's"):
    vit.resize_positions(positions, (4, 4))


def test_resized_positions_are_those_between():
  # Straight lines stay straight away from the edges: cells of the new grid lie between the old.
  rows, columns = np.meshgrid(np.arange(12.0), np.arange(12.0), indexing="ij")
  lines = np.stack([rows + 2 * columns, columns], -1).reshape(1, 144, 2).astype(np.float32)
  first = np.full((1, 1, 2), 7, np.float32)
  resized = vit.resize_positions(np.concatenate([first, lines], 1), (24, 6), class_token=True)
  np.testing.assert_array_equal(resized[:, :1], first)
  rows, columns = np.meshgrid(np.arange(24) / 2 - 0.25, 2 * np.arange(6) + 0.5, indexing="ij")
  inner = lambda x: x.reshape(24, 6, 2)[6:-6, 2:-2]
  expected = np.stack([rows + 2 * columns, columns], -1)
  np.testing.assert_allclose(inner(np.asarray(resized[0, 1:])), inner(expected), atol=1e-4)


def test_weights_of_another_image_size_or_form_fit():
  small_images, large = small(class_token=True), small(class_token=True, image_size=48, scan=True)
  arrays = {k: np.asarray(v) for k, v in flat(nnx.to_pure_dict(nnx.state(small_images))).items()}
  fitted = weights.fit(arrays, large)
  assert fitted["positions"].shape == (1, 37, 32)
  weights.fill(nnx.clone(large), fitted)
  back = weights.fit(fitted | {"positions": arrays["positions"]}, small_images)
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("name", ["vit", "vit_registers"])
def test_the_weights_of_transformers_give_its_numbers(name):
  options, arrays, expected = vit_reference.golden(name)
  vit_reference.check(options, arrays, *expected)


def test_weights_that_do_not_fit_are_errors_that_name_what_is_missing_or_left():
  options, arrays, _ = vit_reference.golden("vit")
  without = lambda *names: {k: v for k, v in arrays.items() if k not in names}
  filled = lambda arrays, **changes: vit_reference.filled(options, arrays, **changes)
  with pytest.raises(ValueError, match=r"^distillation_token: no parameters of a ViT"):
    filled({**arrays, "distillation_token": np.zeros(3)})
  with pytest.raises(
    ValueError, match=r"blocks/1/attention: no bias of key beside .* query, value"
  ):
    filled(without("layers.1.attention.k_proj.bias"))
  with pytest.raises(
    ValueError, match=r"^the weights lack blocks/2/.* and 6 more: build the model"
  ):
    filled(arrays, depth=3)
  with pytest.raises(ValueError, match=r"^the model lacks blocks/1/.* and 6 more: build the model"):
    filled(arrays, depth=1)
  with pytest.raises(
    ValueError, match=r"the weights lack register_tokens; the model lacks class_to"
  ):
    filled(arrays, class_token=False, registers=1)
  with pytest.raises(ValueError, match=r"lack blocks/1/mlp/expand/bias, which other blocks have"):
    filled(without("layers.1.mlp.fc1.bias"), scan=True)
  with pytest.raises(ValueError, match=r"stem/dense/kernel is \(192, 16\), in the file \(48, 16\)"):
    filled(arrays, image_size=24, patch_size=8)


# Masks.


@functools.cache
def masked(**options):
  """The outputs of a model that loses half of 16 patches, in training, and how pixels move them."""
  graphdef, parameters = nnx.split(small(mask_rate=0.5, **options))
  parameters = nnx.to_pure_dict(parameters)
  extra = jax.random.normal(jax.random.key(1), (2, 3, 32))

  @jax.jit
  def run(x, key):
    random = lambda: dict(train=True, rngs=nnx.Rngs(dropout=key))
    encode = lambda x: nnx.merge(graphdef, parameters)(x, extra=extra, **random())
    tokens, pull_back = jax.vjp(encode, x)
    return tokens, pull_back(3 * tokens**2)[0]

  return run


def seen_by(slope):
  """[batch, 16] which patches of 8 pixels have any say."""
  cells = np.abs(np.asarray(slope)).reshape(-1, 4, 8, 4, 8, 3)
  return (cells > 0).any((2, 4, 5)).reshape(-1, 16)


@pytest.mark.parametrize("stem", ["patch", "conv", "residual"])
def test_what_a_masked_image_loses_has_no_say_whatever_the_stem(stem):
  tokens, slope = masked(stem=stem, depth=1)(images(), jax.random.key(0))
  assert tokens.shape == (2, 8 + 3, 32)
  seen = seen_by(slope)
  assert seen.sum(1).tolist() == [8, 8]
  assert (seen[0] != seen[1]).any()
  # They are the tokens of those that are kept, of an image without the others.
  kept = np.stack([np.flatnonzero(row) for row in seen])
  grey = images() * jnp.asarray(seen.reshape(-1, 4, 1, 4, 1, 1).repeat(8, 2).repeat(8, 4)).reshape(
    2, 32, 32, 1
  )
  extra = jax.random.normal(jax.random.key(1), (2, 3, 32))
  expected = jax.jit(small(stem=stem, depth=1))(grey, kept=kept, extra=extra)
  np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_masks_are_others_at_every_step_and_of_all_patches_alike():
  run = masked(stem="patch", depth=1)
  seen = np.stack([seen_by(run(images(), jax.random.key(seed))[1]) for seed in range(40)])
  assert (seen.sum(2) == 8).all()
  assert len(np.unique(seen.reshape(80, 16), axis=0)) > 75
  # Each is there in half of the 80: of a binomial, four standard deviations are 18.
  assert (np.abs(seen.sum((0, 1)) - 40) < 18).all()


def test_nothing_is_lost_in_evaluation_or_where_others_choose():
  model, whole = small(mask_rate=0.5, depth=1), small(depth=1)
  np.testing.assert_array_equal(model(images()), whole(images()))
  kept = jnp.tile(jnp.arange(12), (2, 1))
  chosen = model(images(), kept=kept, train=True, rngs=nnx.Rngs(dropout=0))
  np.testing.assert_array_equal(chosen, whole(images(), kept=kept))


@pytest.mark.parametrize(
  "options", [dict(remat=True), dict(scan=True), dict(class_token=True, registers=2)]
)
def test_masks_go_with_blocks_and_tokens_of_any_kind(options):
  tokens, slope = masked(**options)(images(), jax.random.key(0))
  expected, of_plain = masked()(images(), jax.random.key(0))
  np.testing.assert_array_equal(seen_by(slope), seen_by(of_plain))
  if "class_token" in options:
    assert tokens.shape == (2, 1 + 8 + 3, 32)
  else:
    np.testing.assert_allclose(tokens, expected, atol=2e-5)


def test_a_masked_step_costs_what_the_patches_it_keeps_cost():
  width, depth = 32, 2

  def flops(mask_rate):
    model = vit.ViT(**SMALL | dict(image_size=64, mask_rate=mask_rate), rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 64, 64, 3))
    stem = cost.flops(lambda x: model.stem(x), x)
    return cost.flops(lambda x: model(x, train=True, rngs=nnx.Rngs(dropout=0)), x) - stem

  # Of a block: 12 width^2 products for each token, and 2 width for each pair of tokens.
  expected = lambda n: 2 * depth * (12 * n * width**2 + 2 * n**2 * width)
  assert [flops(rate) for rate in (0, 0.5, 0.75)] == [expected(n) for n in (64, 32, 16)]


@pytest.mark.parametrize("rate", [-0.1, 1.0, 0.99, 0.01, float("nan")])
def test_a_rate_that_leaves_all_or_nothing_is_an_error_that_says_what_does(rate):
  with pytest.raises(ValueError, match=f"mask_rate={rate} of 16 patches: use 0 .none., or a share"):
    vit.ViT(**SMALL, mask_rate=rate, rngs=nnx.Rngs(0))


def test_masks_need_random_numbers():
  with pytest.raises(ValueError, match="mask_rate 0.5 needs rngs"):
    small(mask_rate=0.5)(images(), train=True)
