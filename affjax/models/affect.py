"""The model that every config describes: an encoder of images and a decoder of affect.

Between them may be a temporal model, which lets the frames of a clip know of each other.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.build import build

_PACKAGE = "affjax.models"


class AffectModel(nnx.Module):
  """Encoder (-> temporal model) -> decoder, built from their sections of a config.

  An encoder takes `image_size`, `dtype` and `rngs` besides what its section says, maps images to
  tokens [batch, length, width], and has the attributes `width` and `num_tokens`. A decoder takes
  `outputs`, `input_width`, `input_length`, `dtype` and `rngs`, and maps tokens to one output per
  task. Both are called with `train`, `rngs` and `attention`.

  A decoder whose attribute `num_extra` is above 0 has tokens that go through the encoder: what its
  `extra(batch)` gives is the argument `extra` of the encoder, which returns them behind its own,
  and the decoder's `cut` takes its part of the encoder's attention maps. One whose attribute
  `by_place` is true knows the image's tokens by their places, and needs all of them.

  A temporal model takes `input_width`, `dtype` and `rngs`, maps the means of the frames' tokens
  [batch, time, input_width] to one token each, and has the attribute `width`; it is called with
  which frames are present, `train` and `rngs`: see `affjax.models.temporal`. The means are
  standardised before, as are the tokens of an encoder whose attribute `raw` is true.

  Attributes:
    input_shape: of an image, without the batch: [height, width, 3], or what the encoder says.
  """

  def __init__(
    self,
    *,
    encoder: Mapping[str, Any],
    decoder: Mapping[str, Any],
    outputs: Mapping[str, int],
    image_size: int,
    temporal: Mapping[str, Any] | None = None,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the model.

    Args:
      encoder: `name`, such as "vit.ViT", and the arguments of its constructor.
      decoder: the same, such as "decoders.TaskTokens".
      outputs: task -> size of its output, such as {"va": 2, "expression": 8, "au": 12}.
      image_size: height and width of the images in pixels.
      temporal: as the others, such as "temporal.GRU"; None: each frame is alone.
      dtype: dtype of the activations, such as "bfloat16"; parameters and outputs are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a section is wrong; it says what is allowed.
    """
    common = dict(dtype=jnp.dtype(dtype), rngs=rngs)
    self.encoder = build(encoder, _PACKAGE, image_size=image_size, **common)
    self.input_shape = getattr(self.encoder, "input_shape", (image_size, image_size, 3))
    width, length = self.encoder.width, self.encoder.num_tokens
    # Of what an encoder gives most is the same for every face, and what differs is small beside it:
    # over a frozen one, learning would begin by finding that out.
    one_a_frame = temporal or getattr(self.encoder, "raw", False)
    options = dict(momentum=0.9, use_bias=False, use_scale=False, rngs=rngs)
    self.standardise = nnx.BatchNorm(width, **options) if one_a_frame else None
    over_time = dict(input_width=width, **common)
    self.temporal = build(temporal, _PACKAGE, **over_time) if temporal else None
    if temporal:
      width, length = self.temporal.width, 1
    sizes = dict(outputs=dict(outputs), input_width=width, input_length=length)
    self.decoder = build(decoder, _PACKAGE, **sizes, **common)
    if self.decoder.num_extra and temporal:
      raise ValueError(
        f"position 'encoder' of the tokens of {decoder['name']}: {temporal['name']} comes before"
        " the decoder; use config.model.decoder.position=decoder, or decoders.Linear"
      )
    if getattr(self.decoder, "by_place", False) and getattr(self.encoder, "mask_rate", 0):
      raise ValueError(
        f"mask_rate {self.encoder.mask_rate} of {encoder['name']}: {decoder['name']} knows tokens"
        " by their places, and some would be missing; use config.model.encoder.mask_rate=0, or"
        " decoders.Linear"
      )
    takes = inspect.signature(type(self.encoder).__call__).parameters
    if self.decoder.num_extra and "extra" not in takes:
      raise ValueError(
        f"position 'encoder' of the tokens of {decoder['name']}: {encoder['name']} carries none but"
        " its own; use config.model.decoder.position=decoder, or the encoder vit.ViT"
      )

  def __call__(
    self,
    images: jax.Array,
    present: jax.Array | None = None,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, Any]]:
    """Predicts every task.

    Args:
      images: [batch, image_size, image_size, 3] floats in [-1, 1], of clips [batch, time, ...].
      present: of clips, [batch, time] bool: which frames there are. None: images, to a temporal
        model clips of one frame.
      train: whether dropout and drop path are on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the attention maps too.

    Returns:
      Task -> [batch, size], of clips [batch, time, size], float32: "va" in (-1, 1) unless its
      activation says otherwise, logits for the others; and what else the decoder gives, such as
      "va/log_variance". With `attention` also {"encoder": maps, "decoder": maps}, as they give
      them, of all frames as one batch; the decoder's of tokens that the encoder carried are cut out
      of the encoder's.
    """
    options = dict(train=train, rngs=rngs, attention=attention)
    tokens, encoder_maps = self._encode(images, present, **options)
    outputs = self.decoder(tokens, **self._beside(images, present), **options)
    outputs, decoder_maps = outputs if attention else (outputs, None)
    outputs = of_clips(outputs, present)
    if not attention:
      return outputs
    decoder_maps = self.decoder.cut(encoder_maps) if self.decoder.num_extra else decoder_maps
    return outputs, {"encoder": encoder_maps, "decoder": decoder_maps}

  def features(self, images: jax.Array, present: jax.Array | None = None) -> dict[str, jax.Array]:
    """Predicts every task, and gives the vector that this is read from.

    Args:
      images: see `__call__`.
      present: likewise.

    Returns:
      What a call gives, and "features" [batch, width], of clips [batch, time, width], float32: the
      mean of the tokens that the decoder reads, and behind it each of the decoder's own tokens that
      the encoder carried.
    """
    options = dict(train=False, rngs=None, attention=False)
    tokens, _ = self._encode(images, present, **options)
    outputs = self.decoder(tokens, **self._beside(images, present), **options)
    return of_clips(outputs | {"features": self._vector(tokens)}, present)

  def _beside(self, images: jax.Array, present: jax.Array | None) -> dict[str, jax.Array]:
    """What the decoder is given besides tokens: nothing, unless a model says otherwise."""
    del images, present
    return {}

  def _vector(self, tokens: jax.Array) -> jax.Array:
    """[frames, width] float32: the mean of the image's tokens, then the decoder's own."""
    own = self.decoder.num_extra
    image = tokens[:, : tokens.shape[1] - own].astype(jnp.float32).mean(axis=1)
    carried = tokens[:, tokens.shape[1] - own :].astype(jnp.float32).reshape(image.shape[0], -1)
    return jnp.concatenate([image, carried], axis=1)

  def _encode(
    self, images: jax.Array, present: jax.Array | None, **options: Any
  ) -> tuple[jax.Array, Any]:
    """[frames, length, width] tokens for the decoder, all frames as one batch; the encoder's maps.

    Without `attention` there are none.
    """
    images = self._frames(images, present)
    extra = {"extra": self.decoder.extra(images.shape[0])} if self.decoder.num_extra else {}
    tokens = self.encoder(images, **extra, **options)
    tokens, maps = tokens if options["attention"] else (tokens, None)
    if self.standardise is not None:
      tokens = self._one_a_frame(tokens, present, train=options["train"], rngs=options["rngs"])
    return tokens, maps

  def _frames(self, images: jax.Array, present: jax.Array | None) -> jax.Array:
    """All frames as one batch."""
    return images if present is None else images.reshape(-1, *self.input_shape)

  def _one_a_frame(
    self, tokens: jax.Array, present: jax.Array | None, *, train: bool, rngs: nnx.Rngs | None
  ) -> jax.Array:
    """[frames, length, width] of the encoder -> [frames, 1, width], through the temporal model."""
    if present is None:
      present = jnp.ones((tokens.shape[0], 1), bool)
    frames = tokens.astype(jnp.float32).mean(axis=1)
    there = present.reshape(-1, 1)
    frames = self.standardise(frames, use_running_average=not train, mask=there)
    if self.temporal is not None:
      frames = frames.reshape(*present.shape, -1)
      frames = self.temporal(frames, present, train=train, rngs=rngs)
    return frames.reshape(tokens.shape[0], 1, -1)


def of_clips(outputs: Mapping[str, jax.Array], present: jax.Array | None) -> dict[str, jax.Array]:
  """Outputs of all frames as one batch -> of clips; as they are where there are none."""
  if present is None:
    return dict(outputs)
  return {name: y.reshape(*present.shape, -1) for name, y in outputs.items()}
