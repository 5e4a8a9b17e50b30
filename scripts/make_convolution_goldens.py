"""Makes the small files that tests of convolutional encoders compare with, by PyTorch.

  pip install -e ".[parity]"
  python scripts/make_convolution_goldens.py     # writes tests/goldens/resnet.npz and its like

Each file holds, for some narrow networks of full depth, the names and shapes of their arrays as
JSON, the size of the images, and what the network makes of these: its last map, or its one vector.
Weights and images are drawn anew by `tests/public_weights.py`. The networks are those of
`tests/torch_references.py` and `tests/torch_concatenating.py`; `tests/resnet_parity_test.py` and
`tests/keras_parity_test.py` make the same comparison at full width.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).parent.parent / "tests"
sys.path += [str(TESTS.parent), str(TESTS)]

import public_weights  # noqa: E402
import torch_concatenating as concatenating  # noqa: E402
import torch_references as references  # noqa: E402

NARROW = dict(width=8)
FACES = dict(width=16, image_size=32, embedding=24)  # a gate divides channels by 16
# File -> name -> network, size of the images.
GOLDENS: dict[str, dict[str, tuple[Callable[[], torch.nn.Module], int]]] = {
  "vgg": {
    "map": (lambda: references.VGG16(**NARROW, dense=0), 64),
    "dense": (lambda: references.VGG16(**NARROW, image_size=64, dense=32), 64),
  },
  "resnet": {
    "18": (lambda: references.ResNet(18, **NARROW), 64),
    "50, gates": (lambda: references.ResNet(50, **NARROW, gates=True), 64),
    "insightface 18": (lambda: references.InsightFace(18, **FACES), 32),
    "face.evoLVe 18, gates": (lambda: references.Evolve(18, **FACES, gates=True), 32),
  },
  # Images that leave rows over where maps are halved.
  "inception": {"a quarter": (lambda: concatenating.Inception(multiplier=0.25), 107)},
  "densenet": {"an eighth": (lambda: concatenating.Dense(growth=4), 75)},
}


def main() -> None:
  """Writes all goldens."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--output", type=Path, default=TESTS / "goldens", help="folder")
  output = parser.parse_args().output
  output.mkdir(parents=True, exist_ok=True)
  for name, networks in GOLDENS.items():
    arrays = {}
    for kind, (make, size) in networks.items():
      arrays |= {f"{kind}/{part}": array for part, array in golden(make(), size).items()}
    path = output / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size:,} bytes, torch {torch.__version__}")


def golden(model: torch.nn.Module, size: int) -> dict[str, Any]:
  """What a golden holds of a network."""
  shapes = references.shapes(model)
  output = references.run(model, public_weights.draw(shapes), public_weights.images(size))
  return {"shapes": json.dumps(shapes), "image_size": size, "output": output}


if __name__ == "__main__":
  main()
