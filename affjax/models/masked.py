"""An encoder that sees a part of each image, and a decoder that paints the rest."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.build import build
from affjax.models import layers

_PACKAGE = "affjax.models"


class MaskedAutoencoder(nnx.Module):
  """A masked autoencoder (He et al., 2021, arXiv:2111.06377), without what hides and compares.

  The encoder stands where `affect.AffectModel` has its own, so that a supervised run can start from
  it. Its positions begin as sines and cosines, and are learned unless they are frozen, which the
  paper's are.

  Attributes:
    input_shape: of an image without the batch.
    patch_size: height and width of a patch, pixels.
    num_patches: how many an image has.
  """

  def __init__(
    self,
    *,
    encoder: Mapping[str, Any],
    pixel_decoder: Mapping[str, Any],
    image_size: int,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the model.

    Args:
      encoder: `name`, such as "vit.ViT", and the arguments of its constructor.
      pixel_decoder: the same, such as "masked.PixelDecoder".
      image_size: height and width of the images in pixels.
      dtype: dtype of the activations; parameters and outputs are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a section is wrong, or the encoder cannot leave out patches.
    """
    common = dict(dtype=jnp.dtype(dtype), rngs=rngs)
    self.encoder = build(encoder, _PACKAGE, image_size=image_size, **common)
    if "kept" not in inspect.signature(type(self.encoder).__call__).parameters:
      raise ValueError(
        f"config.model.encoder.name={encoder['name']!r} sees whole images: masked autoencoding"
        " needs vit.ViT"
      )
    self.input_shape = (image_size, image_size, 3)
    self.patch_size, self.num_patches = self.encoder.patch_size, self.encoder.num_patches
    side, width = image_size // self.patch_size, self.encoder.width
    own = self.encoder.num_tokens - self.num_patches
    positions = self.encoder.positions
    positions[...] = positions[...].at[:, own:].set(sine_cosine(side, width)[None])
    self.pixel_decoder = build(
      pixel_decoder, _PACKAGE, input_width=width, side=side, patch_size=self.patch_size, **common
    )

  def __call__(
    self,
    images: jax.Array,
    kept: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Paints all patches, given some.

    Args:
      images: [batch, image_size, image_size, 3] floats in [-1, 1].
      kept: [batch, count] numbers of the patches that the encoder is given.
      train: whether dropout and drop path are on.
      rngs: holds a "dropout" stream while training with a rate above 0.

    Returns:
      [batch, num_patches, 3 * patch_size^2] float32, in rows from the top left, as are the pixels
      of a patch.
    """
    tokens = self.encoder(images, kept=kept, train=train, rngs=rngs)
    return self.pixel_decoder(tokens, kept, train=train, rngs=rngs)


class PixelDecoder(nnx.Module):
  """Blocks over the tokens of what was seen and one learned token for each patch that was not.

  Positions are fixed sines and cosines; a class token of the encoder takes part and has none.
  """

  def __init__(
    self,
    *,
    input_width: int,
    side: int,
    patch_size: int,
    width: int = 512,
    depth: int = 8,
    num_heads: int = 16,
    gelu: str = "tanh",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder.

    Args:
      input_width: channels of the encoder's tokens.
      side: patches in a row of the image, and rows of them.
      patch_size: height and width of a patch, pixels.
      width: channels; a multiple of four.
      depth: number of blocks.
      num_heads: attention heads; must divide `width`.
      gelu: see `layers.MLP`.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: sizes that do not fit.
    """
    for name, size, most in (
      ("width", width, 8192),
      ("num_heads", num_heads, 64),
      ("depth", depth, 64),
    ):
      if not 1 <= size <= most:
        raise ValueError(f"config.model.pixel_decoder.{name}={size}: use 1 to {most}")
    options = dict(dtype=jnp.dtype(dtype), rngs=rngs)
    self.side, self.width = side, width
    sine_cosine(side, width)  # what it refuses is said here
    self.dense = nnx.Linear(input_width, width, **options)
    hidden = nnx.initializers.normal(0.02)
    self.mask_token = nnx.Param(hidden(rngs.params(), (1, 1, width)))
    block = lambda: layers.Block(width, num_heads, gelu=gelu, **options)
    self.blocks = nnx.List([block() for _ in range(depth)])
    self.norm = nnx.LayerNorm(width, epsilon=1e-6, **options)
    self.pixels = nnx.Linear(width, 3 * patch_size**2, **options)

  def __call__(
    self,
    tokens: jax.Array,
    kept: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Paints patches.

    Args:
      tokens: [batch, own + count, input_width]: tokens that the encoder has of its own, and those
        of the patches `kept`.
      kept: [batch, count] their numbers.
      train: see `layers.Block`.
      rngs: likewise.

    Returns:
      [batch, side * side, 3 * patch_size^2] float32.
    """
    x = self.dense(tokens)
    own = x.shape[1] - kept.shape[1]
    # Cast last, so that the gradient is summed over the batch in float32.
    shape = (x.shape[0], self.side**2, self.width)
    patches = jnp.broadcast_to(self.mask_token[...], shape).astype(x.dtype)
    patches = jax.vmap(lambda all_of_it, at, seen: all_of_it.at[at].set(seen))(
      patches, kept, x[:, own:]
    )
    patches = patches + jnp.asarray(sine_cosine(self.side, self.width), x.dtype)[None]
    x = jnp.concatenate([x[:, :own], patches], axis=1)
    for block in self.blocks:
      x, _ = block(x, train=train, rngs=rngs)
    return self.pixels(self.norm(x[:, own:])).astype(jnp.float32)


def sine_cosine(side: int, width: int) -> np.ndarray:
  """Positions of a square grid: sines and cosines of the column, and behind them of the row.

  Wavelengths from 2 pi to nearly 10,000 times that, as in Vaswani et al. (2017, arXiv:1706.03762).

  Args:
    side: rows and columns.
    width: channels.

  Returns:
    [side * side, width] float32 in [-1, 1], in rows from the top left.

  Raises:
    ValueError: the width is no multiple of four.
  """
  if width % 4:
    raise ValueError(f"width {width}: sines and cosines of two directions need a multiple of 4")
  angles = np.arange(side)[:, None] * 10_000.0 ** (-np.arange(width // 4) / (width // 4))
  places = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
  return np.concatenate([np.tile(places, (side, 1)), np.repeat(places, side, axis=0)], axis=1)
