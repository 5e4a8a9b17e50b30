"""Makes the small files that tests compare with: tiny models of other libraries and what they give.

  pip install -e ".[parity]"
  python scripts/make_goldens.py            # writes tests/goldens/vit_*.npz

Each holds the model's options as JSON, its weights under `transformers`' names (every one of them
random, biases and norms too, so that none can be mixed up unseen), images, the tokens before every
block and after the last, and the tokens after the last norm. `tests/parity_test.py` makes the same
comparison with models that it draws itself.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"
# Name -> options of the reference. Width, depth and so on as `vit.ViT` names them.
TINY = dict(image_size=12, patch_size=4, width=16, depth=2, num_heads=2)
KINDS = {"vit": TINY, "vit_registers": dict(TINY, registers=3)}


def main() -> None:
  """Writes all goldens."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--output", type=Path, default=GOLDENS, help="folder")
  output = parser.parse_args().output
  output.mkdir(parents=True, exist_ok=True)
  for name, options in KINDS.items():
    model = reference(**options)
    images = random_images(options["image_size"])
    arrays = {f"weights/{key}": value for key, value in state(model).items()}
    hidden, tokens = run(model, images)
    arrays |= dict(options=json.dumps(options), images=images, hidden=hidden, tokens=tokens)
    path = output / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes, transformers {transformers.__version__}")


def reference(seed: int = 0, **options: int) -> torch.nn.Module:
  """A model as `untrained` makes it, with random parameters: biases and norms too."""
  model = untrained(**options)
  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      # Scales around 1; all of a size that keeps attention from uniform, GELU from its linear ends.
      scales = parameter.ndim == 1 and not name.endswith("bias")
      spread = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
      values = rng.normal(float(scales), spread, parameter.shape)
      parameter.copy_(torch.from_numpy(values.astype(np.float32)))
  return model.eval()


def untrained(
  *,
  image_size: int,
  patch_size: int,
  width: int,
  depth: int,
  num_heads: int,
  registers: int = 0,
) -> torch.nn.Module:
  """A model of `transformers`, as it is before training: ViT or, with registers, DINOv2.

  Args:
    image_size: height and width of the images in pixels.
    patch_size: of the patches.
    width: channels.
    depth: number of blocks.
    num_heads: attention heads.
    registers: if any, the model is DINOv2's, with layer scale.
  """
  common = dict(
    image_size=image_size,
    patch_size=patch_size,
    hidden_size=width,
    num_hidden_layers=depth,
    num_attention_heads=num_heads,
  )
  if registers:
    config = transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=registers)
    return transformers.Dinov2WithRegistersModel(config)
  config = transformers.ViTConfig(**common, intermediate_size=4 * width)
  return transformers.ViTModel(config, add_pooling_layer=False)


def random_images(size: int, batch: int = 2, seed: int = 0) -> np.ndarray:
  """[batch, size, size, 3] float32 uniform in [-1, 1]."""
  return np.random.default_rng(seed).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
  """The model's parameters under its own names."""
  return {name: value.numpy() for name, value in model.state_dict().items()}


def run(
  model: torch.nn.Module, images: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
  """The tokens [depth + 1, batch, length, width] around every block, and those after the norm."""
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    outputs = model(pixels, output_hidden_states=True, **options)
  return torch.stack(outputs.hidden_states).numpy(), outputs.last_hidden_state.numpy()


if __name__ == "__main__":
  main()
