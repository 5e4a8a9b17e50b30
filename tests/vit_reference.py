"""Our ViT with the weights of another library's, and the comparison of the two, block by block."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.models import vit, weights

GOLDENS = Path(__file__).parent / "goldens"
TOLERANCE = 1e-4
# Options under which ours is a model of `transformers`: DINOv2's have registers, its ViTs do not.
OPTIONS = {
  False: dict(class_token=True, gelu="exact", norm_epsilon=1e-12),
  True: dict(class_token=True, gelu="exact", norm_epsilon=1e-6, layer_scale=1.0),
}


def golden(name):
  """Options, weights under transformers' names, and what it made of images."""
  with np.load(GOLDENS / f"{name}.npz") as file:
    arrays = dict(file)
  named = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
  return (
    json.loads(str(arrays["options"])),
    named,
    [arrays[k] for k in ("images", "hidden", "tokens")],
  )


def filled(options, arrays, **changes):
  """A model with the weights that transformers names `arrays`."""
  options = {**options, **OPTIONS["registers" in options], **changes}
  variant = f"mu/{options.pop('patch_size')}"
  model = nnx.eval_shape(lambda: vit.ViT(**options, variant=variant, rngs=nnx.Rngs(0)))
  values = weights.fit(weights.from_transformers(arrays), model)
  model = nnx.merge(nnx.graphdef(model), jax.tree.map(jnp.zeros_like, nnx.state(model)))
  weights.fill(model, values)
  return model


def check(options, arrays, images, hidden, tokens):
  """Compares the tokens around every block, [depth + 1, ...], and those after the last norm."""
  model, scanned = filled(options, arrays), filled(options, arrays, scan=True)
  registers = options.get("registers", 0)
  # There registers follow the class token, here the patches.
  order = [0, *range(registers + 1, tokens.shape[1]), *range(1, registers + 1)]
  hidden, tokens = hidden[:, :, order], tokens[:, order[: model.num_tokens]]

  @jax.jit
  def run(images, x):
    blocks = [x := block(x)[0] for block in model.blocks]
    return model.embed(images), blocks, model(images), scanned(images)

  embedded, blocks, *ends = run(images, hidden[0])
  close = lambda x, y, name: np.testing.assert_allclose(x, y, atol=TOLERANCE, rtol=0, err_msg=name)
  close(embedded, hidden[0][:, : model.num_tokens], "embedded")
  for index, (ours, theirs) in enumerate(zip(blocks, hidden[1:], strict=True)):
    close(ours, theirs, f"after block {index}")
  for name, ours in zip(("as it is", "scanned"), ends, strict=True):
    close(ours, tokens, name)
