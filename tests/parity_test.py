"""The same weights in another library's models and in ours give the same numbers.

Needs the extra `parity`. Where AFFJAX_PARITY is set, as in CI, its absence is an error.
"""

import os

import jax
import numpy as np
import pytest
from flax import nnx

from affjax.models import vit, weights

if not os.environ.get("AFFJAX_PARITY"):
  reason = 'no {}: pip install "torch==2.13.0" and then ".[parity]"'
  pytest.importorskip("torch", reason=reason.format("torch"))
  pytest.importorskip("transformers", reason=reason.format("transformers"))

import torch
import vit_reference

from scripts import make_goldens

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
