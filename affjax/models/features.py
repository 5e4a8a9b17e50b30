"""Vectors that an encoder gave for images beforehand, in place of an encoder."""

import jax
import jax.numpy as jnp
from flax import nnx


class Precomputed(nnx.Module):
  """Takes the place of an encoder where batches hold its vectors, see `affjax.data.features`.

  Attributes:
    width: channels of the token that comes out.
    num_tokens: 1.
    input_shape: of what it takes for an image.
    raw: True: its tokens come in any scale.
  """

  num_tokens = 1
  raw = True

  def __init__(
    self, *, image_size: int, width: int, dtype: str | jnp.dtype = "float32", rngs: nnx.Rngs
  ) -> None:
    """Builds the layer.

    Args:
      image_size: of the images that the vectors are of; it makes no difference.
      width: numbers in a vector.
      dtype: dtype of the token.
      rngs: not used, there are no parameters.
    """
    del image_size, rngs
    if width < 1:
      raise ValueError(f"width {width}: use 1 or more")
    self.width, self.input_shape = width, (width,)
    self.dtype = jnp.dtype(dtype)

  def __call__(
    self,
    vectors: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    """Maps [batch, width] to tokens [batch, 1, width]; it has no attention maps to give."""
    del train, rngs
    tokens = vectors[:, None].astype(self.dtype)
    return (tokens, {}) if attention else tokens
