"""Makes the small files that tests of imported weights compare with: tiny ViTs of timm.

  pip install "torch==2.13.0" "torchvision==0.28.0" timm    # in an environment of its own
  python scripts/make_timm_goldens.py                       # writes tests/goldens/timm*.npz

In an environment of its own, for timm needs a torchvision that was built with the very torch: that
of PyPI cannot be imported beside a CPU build of torch, as the tests take it.

Each file holds the model's options as JSON, weights under public names (every one of them random),
images, and the tokens after the last norm as timm gives them: the class token, registers, patches.
The weights have timm's own names, or those of google-research's ViTs in Flax, one block after the
other or all in one, which timm's loader read.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"
TINY = dict(img_size=12, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=0)
# timm's registers have no positions, and then the class token has none.
KINDS = {"timm": TINY, "timm_registers": TINY | dict(reg_tokens=3, no_embed_class=True)}
KINDS["timm_registers"]["init_values"] = 1.0
FLAX = {"timm_flax": False, "timm_flax_stacked": True}


def main() -> None:
  """Writes all goldens."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=Path, default=GOLDENS, help="folder")
  output = parser.parse_args().output
  output.mkdir(parents=True, exist_ok=True)
  for name, options in KINDS.items():
    model = random_model(**options)
    write(output / f"{name}.npz", model, options, named(model))
  for name, stacked in FLAX.items():
    arrays = flax_arrays(stacked)
    write(output / f"{name}.npz", loaded(arrays), TINY, arrays)


def random_model(seed: int = 0, **options: Any) -> VisionTransformer:
  """A model with random parameters: biases and norms too."""
  model = VisionTransformer(**options)
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      scales = parameter.ndim == 1 and not name.endswith("bias")
      parameter.copy_(torch.from_numpy(draw(rng, tuple(parameter.shape), scales=scales)))
  return model.eval()


def draw(rng: np.random.Generator, shape: tuple[int, ...], *, scales: bool) -> np.ndarray:
  """Numbers of a size that keeps attention from uniform; scales around 1."""
  spread = shape[-1] ** -0.5 if len(shape) >= 2 else 0.5
  return rng.normal(float(scales), spread, shape).astype(np.float32)


def flax_arrays(stacked: bool) -> dict[str, np.ndarray]:
  """Random arrays named as in a file of vision_transformer or, stacked, of big_vision."""
  width, heads, depth = TINY["embed_dim"], TINY["num_heads"], TINY["depth"]
  size, inside = width // heads, 4 * width
  attention, norm, mlp = (0, 1, 0) if stacked else (1, 2, 3)
  block = {}
  for part in ("query", "key", "value"):
    block[f"MultiHeadDotProductAttention_{attention}/{part}/kernel"] = (width, heads, size)
    block[f"MultiHeadDotProductAttention_{attention}/{part}/bias"] = (heads, size)
  block |= {
    f"MultiHeadDotProductAttention_{attention}/out/kernel": (heads, size, width),
    f"MultiHeadDotProductAttention_{attention}/out/bias": (width,),
    f"MlpBlock_{mlp}/Dense_0/kernel": (width, inside),
    f"MlpBlock_{mlp}/Dense_0/bias": (inside,),
    f"MlpBlock_{mlp}/Dense_1/kernel": (inside, width),
    f"MlpBlock_{mlp}/Dense_1/bias": (width,),
  }
  for number in (0, norm):
    block |= {f"LayerNorm_{number}/{part}": (width,) for part in ("scale", "bias")}
  positions = "pos_embedding" if stacked else "Transformer/posembed_input/pos_embedding"
  shapes = {
    "cls": (1, 1, width),
    positions: (1, 10, width),
    "embedding/kernel": (4, 4, 3, width),
    "embedding/bias": (width,),
    "Transformer/encoder_norm/scale": (width,),
    "Transformer/encoder_norm/bias": (width,),
    "head/kernel": (width, 5),
    "head/bias": (5,),
  }
  if stacked:
    shapes |= {f"Transformer/encoderblock/{name}": (depth, *s) for name, s in block.items()}
  else:
    for layer in range(depth):
      shapes |= {f"Transformer/encoderblock_{layer}/{name}": s for name, s in block.items()}
  rng = np.random.default_rng(1)
  first = "params/" if stacked else ""
  return {first + n: draw(rng, s, scales=n.endswith("scale")) for n, s in shapes.items()}


def loaded(arrays: dict[str, np.ndarray]) -> VisionTransformer:
  """timm's model with the arrays of a file of Flax's, read by timm."""
  model = VisionTransformer(**TINY)
  with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    np.savez(file, **arrays)
    file.flush()
    model.load_pretrained(file.name)
  return model.eval()


def named(model: VisionTransformer) -> dict[str, np.ndarray]:
  """The model's parameters under its own names."""
  return {name: value.numpy() for name, value in model.state_dict().items()}


def write(
  path: Path, model: VisionTransformer, options: dict[str, Any], arrays: dict[str, np.ndarray]
) -> None:
  """Writes a golden."""
  size = options["img_size"]
  images = np.random.default_rng(0).uniform(-1, 1, (2, size, size, 3)).astype(np.float32)
  with torch.no_grad():
    tokens = model.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
  kept = {f"weights/{name}": array for name, array in arrays.items()}
  np.savez_compressed(path, **kept, options=json.dumps(options), images=images, tokens=tokens)
  print(f"{path}: {path.stat().st_size:,} bytes, timm {timm.__version__}")


if __name__ == "__main__":
  main()
