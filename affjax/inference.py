"""A trained run, used: images -> named outputs."""

import dataclasses
import functools
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from affjax import checkpoints, experiment, procedures, sharding, workdir
from affjax.data import clips
from affjax.data.records import fit, read_image

BUCKET = 64  # images a call; the last is padded, so nothing is compiled twice
IMAGE_SIZE = 4096  # pixels, of a config at most
LABELS = 1000  # of a task at most
# What this module and `procedures.from_config` take from a config without a look at it.
_FIELDS = {
  "labels": Mapping, "losses": Mapping, "data": Mapping, "model": Mapping, "optimizer": Mapping,
  "procedure": Mapping, "augment": Mapping, "image_size": int, "data.image_size": int, "seed": int,
  "steps": int, "dtype": str,
}  # fmt: skip
_DEPTH, _NUMBER = 16, 2**32  # how deep a config may be nested, and its largest number


@dataclasses.dataclass(frozen=True)
class Prediction:
  """Outputs for a number of images, by name.

  Attributes:
    va: "valence", "arousal" -> [images] in [-1, 1].
    expression: [images] name of the most probable expression.
    expression_probability: expression -> [images] in [0, 1], summing to 1 over expressions.
    au_probability: unit -> [images] in [0, 1].
  """

  va: dict[str, np.ndarray]
  expression: np.ndarray
  expression_probability: dict[str, np.ndarray]
  au_probability: dict[str, np.ndarray]

  def __len__(self) -> int:
    return len(self.expression)

  def rows(self) -> list[dict[str, Any]]:
    """One flat dict an image, for a table."""
    columns = self.va | {"expression": self.expression}
    columns |= {f"p({name})": v for name, v in self.expression_probability.items()}
    columns |= self.au_probability
    return [{name: v[i].item() if v[i].ndim == 0 else v[i] for name, v in columns.items()}
            for i in range(len(self))]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Attention:
  """Where the task tokens of a model look.

  Attributes:
    names: of the tokens, such as "AU12" or, of a token that stands for a whole task, "au".
    tokens: [layers, images, heads, tokens, tokens] from each token to every one.
    image: [layers, images, heads, tokens, rows, columns] from each token to the image's patches,
      rows from the top. In position "decoder" of the tokens it sums to 1 over the patches, less
      what goes to a class token; in position "encoder" with `tokens` together, less that as well.
  """

  names: tuple[str, ...]
  tokens: np.ndarray
  image: np.ndarray


class Predictor:
  """A model with its weights.

  Attributes:
    config: of the run, plain nested dict.
    step: the checkpoint's.
  """

  def __init__(self, where: str | Path, checkpoint: str = "best") -> None:
    """Loads the moving average of a run's checkpoint.

    Args:
      where: the run's folder.
      checkpoint: "best" by the run's metric, "latest", or a step.

    Raises:
      ValueError: no run, or no such checkpoint, there; or the config of the run is not one that
        affjax writes. Nothing of it is executed: names in it lead to affjax's own models.
    """
    where = Path(where)
    self.config = workdir.read_config(where)
    procedure = open_procedure(self.config, where / workdir.CONFIG)
    self._labels = self.config["labels"]
    self._image_size = self.config["data"]["image_size"]
    root = where / workdir.CHECKPOINTS
    self.step = checkpoints.pick(root, checkpoint)
    saved = checkpoints.Checkpoints(root, read_only=True)
    restored, _ = saved.restore(
      self.step, experiment.abstract_state(procedure, sharding.make_mesh())
    )
    saved.close()
    self._params, self._model_state = restored.averaged, restored.model_state
    self._procedure = procedure
    self._predict = jax.jit(procedure.predict)

  def outputs(
    self, images: np.ndarray | Sequence[np.ndarray | str | Path]
  ) -> dict[str, np.ndarray]:
    """The model's raw outputs: task -> [images, size]; `va` values, the others logits."""
    return self._in_buckets(self._predict, images)

  def features(self, images: np.ndarray | Sequence[np.ndarray | str | Path]) -> np.ndarray:
    """[images, width] float32: what the outputs are read from, see `affect.AffectModel.features`.

    Args:
      images: as for `predict`.
    """
    return self._in_buckets(self._vectors, images)["features"]

  @functools.cached_property
  def _vectors(self) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(self._procedure.features)

  def sequence(
    self, images: np.ndarray | Sequence[np.ndarray | str | Path], frames: Sequence[int]
  ) -> dict[str, np.ndarray]:
    """The raw outputs, as `outputs` gives them, for images of one person in one video.

    A temporal model sees windows of the run's length, cut as its splits were; of a frame that is in
    several of them the outputs are averaged.

    Args:
      images: as for `predict`; of paths only those of a few windows are in memory at a time.
      frames: [images] their frame numbers, from 0 on, in any order.
    """
    if len(frames) != len(images):
      raise ValueError(f"{len(images)} images with {len(frames)} frame numbers")
    cut = dataclasses.replace(clips.Clips.of(self.config), shuffle="none")
    if not cut or not self.config["model"].get("temporal"):
      return self.outputs(images)
    someone = np.full(len(frames), "-")
    rows = cut.windows(someone, someone, np.asarray(frames))
    if not len(rows):
      raise ValueError("no images given")
    size, parts = max(BUCKET // cut.length, 1), []
    for start in range(0, len(rows), size):
      some = np.full((size, cut.length), -1)
      some[: len(rows) - start] = rows[start : start + size]
      seen = self._windows(images, some)
      parts.append(jax.device_get(self._predict(self._params, self._model_state, seen, some >= 0)))
    whole = jax.tree.map(lambda *x: np.concatenate(x)[: len(rows)], *parts)
    return {name: clips.stitch(x, rows, len(images)) for name, x in whole.items()}

  def _windows(
    self, images: np.ndarray | Sequence[np.ndarray | str | Path], rows: np.ndarray
  ) -> np.ndarray:
    """[windows, length, ...] of the images, each read once; zeros where the row is -1."""
    known, where = np.unique(rows[rows >= 0], return_inverse=True)
    read = self._read([images[row] for row in known])
    seen = np.zeros((*rows.shape, *read.shape[1:]), read.dtype)
    seen[rows >= 0] = read[where]
    return seen

  def _read(self, images: np.ndarray | Sequence[np.ndarray | str | Path]) -> np.ndarray:
    """[images, height, width, 3] uint8 of the run's size; vectors as they are."""
    shape = self._procedure.input_shape
    if len(shape) == 1:
      if any(np.shape(vector) != shape for vector in images):
        raise ValueError(f"the run takes features of {shape[0]} numbers, and no images")
      return np.asarray(images, np.float32)
    size = (self._image_size, self._image_size)
    return np.stack([fit(read_image(i) if isinstance(i, str | Path) else i, size) for i in images])

  def _in_buckets(
    self, function: Callable[..., Any], images: np.ndarray | Sequence[np.ndarray | str | Path]
  ) -> Any:
    """What a jitted function of images gives for all of them: a tree of [images, ...]."""
    if not len(images):
      raise ValueError("no images given")
    parts = []
    for start in range(0, len(images), BUCKET):
      chunk = self._read(images[start : start + BUCKET])
      padded = np.zeros((BUCKET, *chunk.shape[1:]), chunk.dtype)
      padded[: len(chunk)] = chunk
      parts.append(jax.device_get(function(self._params, self._model_state, padded)))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(images)], *parts)

  def attention(self, images: np.ndarray | Sequence[np.ndarray | str | Path]) -> Attention:
    """Where the task tokens look.

    Args:
      images: as for `predict`.

    Raises:
      ValueError: the model has no task tokens.
    """
    maps = self._in_buckets(self._attend, images)
    if not maps:
      raise ValueError(f"{self.config['model']['decoder']['name']} has no task tokens that look")
    tokens, image = (np.moveaxis(maps[name], 0, 1) for name in ("tokens", "image"))
    patches = image.shape[-1]
    side = math.isqrt(patches)
    image = image[..., patches - side**2 :].reshape(*image.shape[:-1], side, side)
    return Attention(self._token_names(), tokens, image)

  @functools.cached_property
  def _attend(self) -> Callable[..., dict[str, jax.Array]]:
    def attend(params: Any, model_state: Any, images: jax.Array) -> dict[str, jax.Array]:
      maps = self._procedure.predict(params, model_state, images, attention=True)[1]["decoder"]
      return {name: x.swapaxes(0, 1) for name, x in maps.items()}

    return jax.jit(attend)

  def _token_names(self) -> tuple[str, ...]:
    """The model's names of its tokens, an index by the label that has it."""
    model = nnx.merge(self._procedure.graphdef, self._params["model"], self._model_state["model"])
    parts = (name.partition("/") for name in model.decoder.token_names)
    return tuple(self._labels[task][int(i)] if i else task for task, _, i in parts)

  def predict(self, images: np.ndarray | Sequence[np.ndarray | str | Path]) -> Prediction:
    """Predicts faces that are cropped and aligned as the run's training images are.

    Args:
      images: [images, height, width, 3] uint8 RGB, or a sequence of such arrays ([height, width] is
        taken as grey) or of paths; sizes may differ and are resized to the run's.
    """
    out = self.outputs(images)
    empty: Mapping[str, Sequence[str]] = {"va": (), "expression": (), "au": ()}
    labels = {**empty, **self._labels}
    columns = lambda task, values: dict(zip(labels[task], values.T, strict=True))
    none = np.zeros((len(next(iter(out.values()))), 0), np.float32)
    logits = out.get("expression", none)
    exps = np.exp(logits - logits.max(-1, keepdims=True, initial=-np.inf)) if logits.size else none
    probability = exps / exps.sum(-1, keepdims=True) if logits.size else none
    best = probability.argmax(-1) if logits.size else np.zeros(len(none), int)
    names = np.array([*labels["expression"], ""])
    return Prediction(
      va=columns("va", out.get("va", none)),
      expression=names[best] if logits.size else names[np.full(len(none), -1)],
      expression_probability=columns("expression", probability),
      au_probability=columns("au", 1 / (1 + np.exp(-out["au"])) if "au" in out else none),
    )


def open_procedure(config: Mapping[str, Any], path: Path) -> Any:
  """The procedure of a config that may be anybody's; ValueError names its file and the fault."""
  try:
    _check(config)
    clips.Clips.of(config)
    return procedures.from_config(config)
  except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as e:
    # The last four come from deep inside, where a config of affjax's has something else.
    kind = "" if isinstance(e, ValueError) else f"{type(e).__name__}: "
    # One line, whatever the names in the config are.
    why = "".join(c if c.isprintable() else "?" for c in str(e).partition("\n")[0])
    raise ValueError(f"{path}: {kind}{why}") from e


def _check(config: Mapping[str, Any]) -> None:
  """Raises ValueError, naming the field, for what could not be a config or would take too long."""
  _check_leaves(config, "config")
  data = config.get("data")
  flat = {
    **config,
    "data.image_size": data.get("image_size") if isinstance(data, Mapping) else None,
  }
  for name, kind in _FIELDS.items():
    if not isinstance(flat.get(name), kind) or isinstance(flat[name], bool):
      what = {int: "an integer", str: "a text"}.get(kind, "a section")
      raise ValueError(f"config.{name}={reprlib.repr(flat.get(name))}: it should be {what}")
  for name in ("image_size", "data.image_size"):
    if not 1 <= flat[name] <= IMAGE_SIZE:
      raise ValueError(f"config.{name}={flat[name]}: use 1 to {IMAGE_SIZE} pixels")
  for task, names in config["labels"].items():
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
      raise ValueError(f"config.labels.{task}={reprlib.repr(names)}: it should be names")
    if not 1 <= len(names) <= LABELS:
      raise ValueError(f"config.labels.{task} has {len(names)} names: use 1 to {LABELS}")


def _check_leaves(tree: Any, name: str, depth: int = 0) -> None:
  """Raises ValueError for numbers that are none or absurd, and for what is nested without end."""
  if depth > _DEPTH:
    raise ValueError(f"{name[:60]}...: nested too deeply")
  if isinstance(tree, Mapping | list | tuple):
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
      _check_leaves(value, f"{name}.{key}", depth + 1)
  elif isinstance(tree, int | float) and not abs(tree) <= _NUMBER:
    raise ValueError(f"{name}={reprlib.repr(tree)}: use a number of at most {_NUMBER:,}")


def load(where: str | Path, checkpoint: str = "best") -> Predictor:
  """See `Predictor`."""
  return Predictor(where, checkpoint)
