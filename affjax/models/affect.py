"""The model that every config describes: an encoder of images and a decoder of affect."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.build import build

_PACKAGE = "affjax.models"


class AffectModel(nnx.Module):
  """Encoder -> decoder, both built from their sections of a config.

  An encoder takes `image_size`, `dtype` and `rngs` besides what its section says, maps images to
  tokens [batch, length, width], and has the attributes `width` and `num_tokens`. A decoder takes
  `outputs`, `input_width`, `input_length`, `dtype` and `rngs`, and maps tokens to one output per
  task. Both are called with `train`, `rngs` and `attention`.

  A decoder whose attribute `num_extra` is above 0 has tokens that go through the encoder: what its
  `extra(batch)` gives is the argument `extra` of the encoder, which returns them behind its own,
  and the decoder's `cut` takes its part of the encoder's attention maps.
  """

  def __init__(
    self,
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    outputs: Mapping[str, int],
    image_size: int,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the model.

    Args:
      encoder: `name`, such as "vit.ViT", and the arguments of its constructor.
      decoder: the same, such as "decoders.TaskTokens".
      outputs: task -> size of its output, such as {"va": 2, "expression": 8, "au": 12}.
      image_size: height and width of the images in pixels.
      dtype: dtype of the activations, such as "bfloat16"; parameters and outputs are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a section is wrong; it says what is allowed.
    """
    common = dict(dtype=jnp.dtype(dtype), rngs=rngs)
    self.encoder = build(encoder, _PACKAGE, image_size=image_size, **common)
    sizes = dict(
      outputs=dict(outputs), input_width=self.encoder.width, input_length=self.encoder.num_tokens
    )
    self.decoder = build(decoder, _PACKAGE, **sizes, **common)
    takes = inspect.signature(type(self.encoder).__call__).parameters
    if self.decoder.num_extra and "extra" not in takes:
      raise ValueError(
        f"position 'encoder' of the tokens of {decoder['name']}: {encoder['name']} carries none but"
        " its own; use config.model.decoder.position=decoder, or the encoder vit.ViT"
      )

  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, Any]]:
    """Predicts every task.

    Args:
      images: [batch, image_size, image_size, 3] floats in [-1, 1].
      train: whether dropout and drop path are on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the attention maps too.

    Returns:
      Task -> [batch, size] float32: "va" in (-1, 1) unless its activation says otherwise, logits
      for the others; and what else the decoder gives, such as "va/log_variance". With `attention`
      also {"encoder": maps, "decoder": maps}, as they give them; the decoder's of tokens that the
      encoder carried are cut out of the encoder's.
    """
    options = dict(train=train, rngs=rngs, attention=attention)
    carries = self.decoder.num_extra > 0
    extra = {"extra": self.decoder.extra(len(images))} if carries else {}
    if not attention:
      return self.decoder(self.encoder(images, **extra, **options), **options)
    tokens, encoder_maps = self.encoder(images, **extra, **options)
    outputs, decoder_maps = self.decoder(tokens, **options)
    decoder_maps = self.decoder.cut(encoder_maps) if carries else decoder_maps
    return outputs, {"encoder": encoder_maps, "decoder": decoder_maps}
