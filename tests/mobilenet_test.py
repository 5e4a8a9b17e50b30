import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affjax.models import mobilenet, weights

WEIGHTS = "AFFJAX_FACERES"  # environment variable: what scripts/import_weights.py faceres-deep made


def images(size=32, batch=2, seed=0):
  return jax.random.uniform(jax.random.key(seed), (batch, size, size, 3), minval=-1, maxval=1)


def shapes(**options):
  return nnx.eval_shape(lambda: mobilenet.MobileNet(**options, rngs=nnx.Rngs(0)))


def count(model):
  return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_it_has_the_papers_sizes():
  # Of the 4.2 million of table 4, 1,025,000 are in the classifier of ImageNet, which is not built.
  inner = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]
  outer = [*inner[1:], 1024]
  kernels = 3 * 9 * 32 + sum(9 * i + i * o for i, o in zip(inner, outer, strict=True))
  biases = 10_944
  assert count(shapes(image_size=224, norm="none")) == kernels + biases == 3_196_032
  half = shapes(image_size=224, multiplier=0.5, norm="none")
  assert half.width == 512


def test_with_batch_norms_it_has_as_many_parameters_as_are_published():
  # In Keras, without a classifier; its batch norms' means and variances are 21,888 more.
  model = shapes(image_size=224, norm="batch")
  assert count(model) == 3_206_976
  statistics = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
  assert count(model) + statistics == 3_228_864


def test_batch_norms_take_the_batch_while_training_and_keep_a_part_of_its_statistics():
  options = dict(image_size=16, multiplier=0.25, depth=1, norm="batch")
  graph, state = nnx.split(mobilenet.MobileNet(**options, rngs=nnx.Rngs(0)))

  @jax.jit
  def run(state, x):
    model = nnx.merge(graph, state)
    before, trained = model(x), model(x, train=True)
    return before, trained, nnx.state(model, nnx.BatchStat), model(x)

  before, trained, moved, after = run(state, images(16))
  assert np.abs(before - trained).max() > 0.1
  assert 0 < np.abs(before - after).max() < 0.1
  means = [x for path, x in nnx.to_flat_state(moved) if path[-1] == "mean"]
  assert len(means) == 3
  assert all(np.abs(x[...]).max() > 0 for x in means)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_maps_become_a_grid_of_tokens(norm):
  model = mobilenet.MobileNet(
    image_size=32, multiplier=0.25, depth=5, grid=2, norm=norm, dtype="bfloat16", rngs=nnx.Rngs(0)
  )
  graph, state = nnx.split(model)
  run = lambda state, x: nnx.merge(graph, state)(x, train=True, attention=True)
  tokens, maps = jax.jit(run)(state, images())
  assert tokens.shape == (2, model.num_tokens, model.width) == (2, 4, 64)
  assert tokens.dtype == jnp.bfloat16
  assert maps == {}


def test_wrong_options_are_refused_by_name():
  with pytest.raises(ValueError, match="norm 'layer'.*'batch', 'group', 'none'"):
    shapes(image_size=32, norm="layer")
  with pytest.raises(ValueError, match="depth 14.*1 to 13"):
    shapes(image_size=32, depth=14)
  with pytest.raises(
    ValueError, match="grid 3 of MobileNet: its last map of 32 x 32 pixels is 1 x 1"
  ):
    shapes(image_size=32, grid=3)


def test_weights_are_filled_in_by_name_and_shape(tmp_path):
  model = mobilenet.MobileNet(
    image_size=32, multiplier=0.25, depth=1, norm="none", rngs=nnx.Rngs(0)
  )
  flat = {
    "/".join(map(str, path)): np.full(p[...].shape, i, np.float32)
    for i, (path, p) in enumerate(nnx.to_flat_state(nnx.state(model, nnx.Param)))
  }
  np.savez(tmp_path / "w.npz", **flat, unknown=np.zeros(3))
  weights.fill(model, weights.read(tmp_path / "w.npz"))
  for name, parameter in (
    ("stem/kernel", model.stem.kernel),
    ("blocks/0/pointwise/bias", model.blocks[0].pointwise.bias),
  ):
    np.testing.assert_array_equal(parameter[...], flat[name])
  with pytest.raises(ValueError, match="stem/bias is not in the file"):
    weights.fill(model, {k: v for k, v in flat.items() if k != "stem/bias"})
  with pytest.raises(ValueError, match=r"stem/bias is \(8,\), in the file \(1,\)"):
    weights.fill(model, flat | {"stem/bias": np.zeros(1)})
  with pytest.raises(ValueError, match="import_weights"):
    weights.read(tmp_path / "other.npz")


def package():
  """Arrays named as in the package, of a network a quarter as wide, from a seed."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(0, 0.3, shape).astype(np.float32)
  channels = [8, 16, 32, 32, 64, 64, *[128] * 6, 256, 256]
  arrays = {
    "conv1/convolution/merged_input": draw(3, 3, 3, 8) / 100,
    "conv1_bn/batchnorm_1/sub": draw(8),
  }
  for i, (inner, outer) in enumerate(zip(channels[:-1], channels[1:], strict=True), 1):
    arrays |= {
      f"conv_dw_{i}/depthwise_kernel": draw(3, 3, inner, 1),
      f"conv_dw_{i}_bn/batchnorm_1/mul": 1 + draw(inner),
      f"conv_dw_{i}_bn/batchnorm_1/sub": draw(inner),
      f"conv_pw_{i}/convolution/merged_input": draw(1, 1, inner, outer),
      f"conv_pw_{i}_bn/batchnorm_1/sub": draw(outer),
    }
  return arrays


def reference(arrays, pixels):
  """The network's last map [size, size, channels], with loops over places."""

  def convolve(
    x, kernel, stride
  ):  # kernel: [3, 3, inner] -> one output a channel, else [.., outer]
    out = -(-x.shape[0] // stride)
    total = max((out - 1) * stride + 3 - x.shape[0], 0)
    x = np.pad(x, ((total // 2, total - total // 2),) * 2 + ((0, 0),))
    rows = []
    for i in range(out):
      places = [x[i * stride : i * stride + 3, j * stride : j * stride + 3] for j in range(out)]
      rows.append([(p * kernel).sum((0, 1)) if kernel.ndim == 3 else
                   np.einsum("abc,abcd->d", p, kernel) for p in places])  # fmt: skip
    return np.array(rows)

  relu = lambda x: np.minimum(np.maximum(x, 0), 6)
  get = lambda name: arrays[name].astype(np.float64)
  x = pixels[..., ::-1] - np.array([103.939, 116.779, 123.68])
  x = convolve(x, get("conv1/convolution/merged_input"), 2)
  x = relu(x + get("conv1_bn/batchnorm_1/sub"))
  for i in range(1, 14):
    x = convolve(x, get(f"conv_dw_{i}/depthwise_kernel")[..., 0], 2 if i in (2, 4, 6, 12) else 1)
    x = relu(x * get(f"conv_dw_{i}_bn/batchnorm_1/mul") + get(f"conv_dw_{i}_bn/batchnorm_1/sub"))
    x = x @ get(f"conv_pw_{i}/convolution/merged_input")[0, 0]
    x = relu(x + get(f"conv_pw_{i}_bn/batchnorm_1/sub"))
  return x


def tokens_of(converted, encoder, pixels):
  section = encoder | {"image_size": len(pixels), "rngs": nnx.Rngs(0)}
  assert section.pop("name") == "mobilenet.MobileNet"
  model = mobilenet.MobileNet(**section)
  weights.fill(model, converted)
  with jax.default_matmul_precision("highest"):
    return np.asarray(model(jnp.asarray(pixels / 127.5 - 1, jnp.float32)[None]))[0, 0]


PIXELS = np.random.default_rng(1).integers(0, 256, (40, 40, 3)).astype(np.float64)


def test_converted_weights_answer_as_the_packages_own_arithmetic():
  arrays = package()
  expected = reference(arrays, PIXELS).mean((0, 1))
  assert expected.std() > 0.1
  public = weights.convert(arrays).seen_through("faceres")
  assert public.encoder["multiplier"] == 0.25
  found = tokens_of(public.arrays, public.encoder, PIXELS)
  np.testing.assert_allclose(found, expected, atol=2e-4)


def test_the_real_network_answers_as_its_own_arithmetic():
  path = os.environ.get(WEIGHTS)
  if not path:
    pytest.skip(f"set {WEIGHTS} to what scripts/import_weights.py faceres-deep made")
  converted = weights.read(Path(path))
  # Back to the package's names: factors are in the kernels already.
  arrays = {
    "conv1/convolution/merged_input": converted["stem/kernel"][:, :, ::-1] / 127.5,
    "conv1_bn/batchnorm_1/sub": converted["stem/bias"],
  }
  for i in range(13):
    depthwise, pointwise = (converted[f"blocks/{i}/{n}wise/kernel"] for n in ("depth", "point"))
    arrays |= {
      f"conv_dw_{i + 1}/depthwise_kernel": depthwise[..., None],
      f"conv_dw_{i + 1}_bn/batchnorm_1/mul": np.ones(depthwise.shape[-1]),
      f"conv_dw_{i + 1}_bn/batchnorm_1/sub": converted[f"blocks/{i}/depthwise/bias"],
      f"conv_pw_{i + 1}/convolution/merged_input": pointwise[None, None],
      f"conv_pw_{i + 1}_bn/batchnorm_1/sub": converted[f"blocks/{i}/pointwise/bias"],
    }
  expected = reference(arrays, PIXELS).mean((0, 1))
  encoder = weights.facts(Path(path))["model"]
  np.testing.assert_allclose(tokens_of(converted, encoder, PIXELS), expected, atol=1e-3)
