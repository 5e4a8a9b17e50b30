"""A trained run or an export of one, used: images -> named outputs."""

import concurrent.futures
import dataclasses
import functools
import html
import math
import reprlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.special
from flax import nnx
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo

from affjax import (
  build,
  calibrate,
  checkpoints,
  contract,
  experiment,
  procedures,
  sharding,
  workdir,
)
from affjax.data import clips
from affjax.data.records import fit, read_image

# Images of a call. What is given is cut into these and the rest padded, so that nothing is compiled
# again, and a single image does not pay for many.
BUCKETS = (1, 8, 64, 256)
IMAGE_SIZE = 4096  # pixels, of a config at most
LABELS = 1000  # of a task at most
# What this module and `procedures.from_config` take from a config without a look at it.
_FIELDS = {
  "labels": Mapping, "losses": Mapping, "data": Mapping, "model": Mapping, "optimizer": Mapping,
  "procedure": Mapping, "augment": Mapping, "image_size": int, "data.image_size": int, "seed": int,
  "steps": int, "dtype": str,
}  # fmt: skip
_DEPTH, _NUMBER = 16, 2**32  # how deep a config may be nested, and its largest number
_SHOWN = 5  # rows of a prediction that is printed
# Of a StableHLO file: what a program may call outside of StableHLO. These are jax.export's own.
_CALLS = {"shape_assertion"}

Images = np.ndarray | Sequence[np.ndarray | str | Path] | str | Path


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
  """Outputs for a number of images, by name.

  Attributes:
    va: "valence", "arousal" -> [images] in [-1, 1]; what a model gives beyond is that bound.
    expression: [images] name of the expression that is decided on: the most probable one, unless
      settings of `affjax.calibrate` have biases.
    expression_probability: expression -> [images] in [0, 1], summing to 1 over expressions.
    au_probability: unit -> [images] in [0, 1].
    au: unit -> [images] bool, whether it is on: from probability 0.5 on, or from the threshold of
      the settings.
  """

  va: dict[str, np.ndarray]
  expression: np.ndarray
  expression_probability: dict[str, np.ndarray]
  au_probability: dict[str, np.ndarray]
  au: dict[str, np.ndarray]

  def __len__(self) -> int:
    return len(self.expression)

  def __getitem__(self, rows: Any) -> "Prediction":
    """Some of the images: a slice, numbers or a mask; by one number a prediction of one image."""
    rows = [rows] if isinstance(rows, int | np.integer) else rows
    take = lambda x: {name: v[rows] for name, v in x.items()} if isinstance(x, dict) else x[rows]
    return Prediction(**{f.name: take(getattr(self, f.name)) for f in dataclasses.fields(self)})

  def columns(self) -> dict[str, np.ndarray]:
    """Name -> [images], always in this order; of tasks that the model lacks there are none.

    `valence`, `arousal`; `expression`; `p_anger` and so on, its probabilities; `AU1` and so on,
    probabilities; `AU1_on` and so on, 0 or 1.
    """
    columns = dict(self.va)
    if self.expression_probability:
      columns["expression"] = self.expression
    columns |= {f"p_{name}": values for name, values in self.expression_probability.items()}
    columns |= self.au_probability
    return columns | {f"{unit}_on": on.astype(np.int8) for unit, on in self.au.items()}

  def rows(self) -> list[dict[str, Any]]:
    """One flat dict an image, of Python's own types."""
    columns = {name: values.tolist() for name, values in self.columns().items()}
    return [{name: v[i] for name, v in columns.items()} for i in range(len(self))]

  def to_pandas(self, index: Any = None) -> Any:
    """The columns as a `pandas.DataFrame`.

    Args:
      index: [images] of its rows, such as the names of the images.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
      import pandas
    except ImportError as e:
      raise ImportError('to_pandas() needs pandas: pip install "affjax[tables]"') from e
    return pandas.DataFrame(self.columns(), index=index)

  def _table(self) -> list[list[str]]:
    """The first images in short, below the headings."""
    likeliest = np.max([*self.expression_probability.values(), np.zeros(len(self))], axis=0)
    lines = [[*self.va, *["expression", "p"] * bool(self.expression_probability)]]
    lines[0] += ["units"] * bool(self.au)
    for i in range(min(len(self), _SHOWN)):
      line = [f"{values[i]:.2f}" for values in self.va.values()]
      if self.expression_probability:
        line += [str(self.expression[i]), f"{likeliest[i]:.2f}"]
      if self.au:
        line.append(" ".join(unit for unit, on in self.au.items() if on[i]) or "-")
      lines.append(line)
    return lines

  @property
  def _title(self) -> str:
    first = f", the first {_SHOWN}" if len(self) > _SHOWN else ""
    return f"Prediction of {len(self)} images{first}:"

  def __repr__(self) -> str:
    table = self._table()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(map(str.rjust, line, widths)) for line in table]
    return "\n".join([self._title, *lines])

  def _repr_html_(self) -> str:
    """For notebooks."""
    row = lambda line, tag: "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
    head, *body = self._table()
    lines = [f"<tr>{row(line, 'td')}</tr>" for line in body]
    return f"<p>{self._title}</p><table><tr>{row(head, 'th')}</tr>{''.join(lines)}</table>"


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
  """A model with its weights: `affjax.load` opens one.

  Attributes:
    config: of the run, plain nested dict.
    labels: task -> names of its outputs.
    image_size: pixels of a side of the images that it takes.
    step: the checkpoint's.
    postprocess: task -> settings as `affjax.calibrate` has them, with what decides by default: of
      "expression" a "bias" for each, of "au" a "threshold" for each.
  """

  def __init__(
    self,
    config: Mapping[str, Any],
    procedure: Any,
    params: Any,
    model_state: Any,
    *,
    step: int = 0,
    settings: Mapping[str, Any] | None = None,
  ) -> None:
    """Takes a model; nothing is compiled.

    Args:
      config: of the run.
      procedure: that the config describes, see `open_procedure`; None: it is not known.
      params: of the procedure.
      model_state: likewise.
      step: they are of.
      settings: as `calibrate.read` gives them.

    Raises:
      ValueError: settings of an ensemble, or of labels that the model lacks.
    """
    self.config, self.step = config, step
    self.labels: Mapping[str, Sequence[str]] = config["labels"]
    self.image_size: int = config["data"]["image_size"]
    self._procedure, self._params, self._model_state = procedure, params, model_state
    one = {task: np.zeros((1, len(names)), np.float32) for task, names in self.labels.items()}
    calibrate.apply(one, np.zeros(1, int), np.ones(1, bool), settings or {}, self.labels)
    self.postprocess = contract.decisions(self.labels, settings or {})

  def __repr__(self) -> str:
    """What it is of, and what it takes and gives."""
    model, size = build.chain(self.config["model"]), self.image_size
    gives = ", ".join(f"{task} ({len(names)})" for task, names in self.labels.items())
    kind = type(self).__name__
    return f"<{kind} {model}, step {self.step}: {size} x {size} -> {gives}>"

  @functools.cached_property
  def contract(self) -> Mapping[str, Any]:
    """From a photograph to the model's input: what `preprocess.json` of an export holds."""
    return contract.preprocess(self.config, self.input_shape)

  @property
  def arrays(self) -> tuple[Any, Any]:
    """Parameters and state of the model, copied to the host."""
    return jax.device_get((self._params, self._model_state))

  @property
  def input_shape(self) -> tuple[int, ...]:
    """[height, width, 3] of the model's images, or [width] of vectors."""
    return self._procedure.input_shape

  @functools.cached_property
  def _jitted(self) -> dict[str, Callable[..., Any]]:
    """Functions of parameters, state and inputs, compiled when they are called first."""

    def attend(params: Any, model_state: Any, images: jax.Array) -> dict[str, jax.Array]:
      maps = self._procedure.predict(params, model_state, images, attention=True)[1]["decoder"]
      return {name: x.swapaxes(0, 1) for name, x in maps.items()}

    own = self._procedure
    return {
      "outputs": jax.jit(own.predict),
      "features": jax.jit(own.features),
      "attention": jax.jit(attend),
    }

  def _call(self, name: str, *inputs: np.ndarray) -> dict[str, jax.Array]:
    return self._jitted[name](self._params, self._model_state, *inputs)

  def predict(self, images: Images, frames: Sequence[int] | None = None) -> Prediction:
    """Predicts faces that are cropped and aligned as `contract` says.

    Args:
      images: [images, height, width, 3] uint8 RGB, or a sequence of such arrays ([height, width] is
        taken as grey) or of paths, or one path; sizes may differ and are resized to the run's.
      frames: of images of one person in one video: their frame numbers, see `sequence`.
    """
    outputs = self.outputs(images) if frames is None else self.sequence(images, frames)
    return self.decide(self.probabilities(outputs))

  def outputs(self, images: Images, *, features: bool = False) -> dict[str, np.ndarray]:
    """The model's raw outputs: task -> [images, size]; `va` values, the others logits.

    Equal to the bit for equal images in the same bucket; of different ones, in float32, values and
    probabilities are within about 1e-6.

    Args:
      images: as for `predict`.
      features: whether to give "features", too, see `features`; that is another program, whose
        outputs are within as much.
    """
    return self._in_buckets("features" if features else "outputs", images)

  def features(self, images: Images) -> np.ndarray:
    """[images, width] float32: what the outputs are read from, see `affect.AffectModel.features`.

    Args:
      images: as for `predict`.
    """
    return self.outputs(images, features=True)["features"]

  @property
  def width(self) -> int:
    """Numbers in a vector of features; nothing is computed."""
    images = jax.ShapeDtypeStruct((1, *self.input_shape), np.uint8)
    return jax.eval_shape(functools.partial(self._call, "features"), images)["features"].shape[1]

  def sequence(self, images: Images, frames: Sequence[int]) -> dict[str, np.ndarray]:
    """The raw outputs, as `outputs` gives them, for images of one person in one video.

    A temporal model sees windows of the run's length, cut as its splits were; of a frame that is in
    several of them the outputs are averaged.

    Args:
      images: as for `predict`; of paths only those of a few windows are in memory at a time.
      frames: [images] their frame numbers, from 0 on, in any order.
    """
    images = self._checked(images)
    if len(frames) != len(images):
      raise ValueError(f"{len(images)} images with {len(frames)} frame numbers")
    if not contract.is_temporal(self.config):
      return self.outputs(images)
    length = (windows := dataclasses.replace(clips.Clips.of(self.config), shuffle="none")).length
    someone = np.full(len(frames), "-")
    rows = windows.windows(someone, someone, np.asarray(frames))
    sizes = [size for size in BUCKETS if size * length <= BUCKETS[-1]] or [1]

    def batches() -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
      with concurrent.futures.ThreadPoolExecutor() as pool:
        for start, count, size in cut(len(rows), sizes):
          some = np.full((size, length), -1)
          some[:count] = rows[start : start + count]
          yield count, (self._windows(images, some, pool), some >= 0)

    whole = _run(functools.partial(self._call, "outputs"), batches())
    return {name: clips.stitch(x, rows, len(images)) for name, x in whole.items()}

  def _windows(
    self, images: Images, rows: np.ndarray, pool: concurrent.futures.Executor
  ) -> np.ndarray:
    """[windows, length, ...] of the images, each read once; zeros where the row is -1."""
    known, where = np.unique(rows[rows >= 0], return_inverse=True)
    read = self._read([images[row] for row in known], pool)
    seen = np.zeros((*rows.shape, *read.shape[1:]), read.dtype)
    seen[rows >= 0] = read[where]
    return seen

  def _checked(self, images: Images) -> Any:
    """A sequence of images; ValueError where it is none."""
    images = [images] if isinstance(images, str | Path) else images
    shape = np.shape(images) if isinstance(images, np.ndarray) else ()
    if len(self.input_shape) == 3 and (len(shape) == 2 or (len(shape) == 3 and shape[-1] == 3)):
      raise ValueError(f"one image of shape {shape}: give a list of it, [image]")
    if not len(images):
      raise ValueError("no images given")
    return images

  def _read(self, images: Images, pool: concurrent.futures.Executor) -> np.ndarray:
    """[images, height, width, 3] uint8 of the run's size; vectors as they are."""
    shape = self.input_shape
    if len(shape) == 1:
      if any(np.shape(vector) != shape for vector in images):
        raise ValueError(f"the run takes features of {shape[0]} numbers, and no images")
      return np.asarray(images, np.float32)
    size = (self.image_size, self.image_size)
    one = lambda image: fit(read_image(image) if isinstance(image, str | Path) else image, size)
    return np.stack(list(pool.map(one, images)))

  def _in_buckets(self, name: str, images: Images, sizes: Sequence[int] = ()) -> Any:
    """What a jitted function of images gives for all of them: a tree of [images, ...].

    Args:
      name: of a function in `_jitted`.
      images: as for `predict`.
      sizes: of buckets; (): `BUCKETS`.
    """
    images = self._checked(images)

    def batches() -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
      with concurrent.futures.ThreadPoolExecutor() as pool:
        for start, count, size in cut(len(images), sizes or BUCKETS):
          read = self._read(images[start : start + count], pool)
          padded = np.zeros((size, *read.shape[1:]), read.dtype)
          padded[:count] = read
          yield count, (padded,)

    return _run(functools.partial(self._call, name), batches())

  def attention(self, images: Images) -> Attention:
    """Where the task tokens look.

    Args:
      images: as for `predict`.

    Raises:
      ValueError: the model has no task tokens.
    """
    maps = self._in_buckets("attention", images, BUCKETS[:-1])  # maps are large
    if not maps:
      raise ValueError(f"{self.config['model']['decoder']['name']} has no task tokens that look")
    tokens, image = (np.moveaxis(maps[name], 0, 1) for name in ("tokens", "image"))
    patches = image.shape[-1]
    side = math.isqrt(patches)
    image = image[..., patches - side**2 :].reshape(*image.shape[:-1], side, side)
    return Attention(self._token_names(), tokens, image)

  def _token_names(self) -> tuple[str, ...]:
    """The model's names of its tokens, an index by the label that has it."""
    model = nnx.merge(self._procedure.graphdef, self._params["model"], self._model_state["model"])
    parts = (name.partition("/") for name in model.decoder.token_names)
    return tuple(self.labels[task][int(i)] if i else task for task, _, i in parts)

  def probabilities(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Raw outputs -> what `decide` takes: task -> [images, size] float64.

    Values of "va", probabilities of the others. It is these that are smoothed over time.
    """
    wide = {task: np.asarray(outputs[task], np.float64) for task in self.labels}
    of = {
      "expression": functools.partial(scipy.special.softmax, axis=-1),
      "au": scipy.special.expit,
    }
    return {task: of.get(task, np.asarray)(values) for task, values in wide.items()}

  def decide(self, values: Mapping[str, np.ndarray]) -> Prediction:
    """Names what `probabilities` gives, and decides on expressions and units by `postprocess`.

    Args:
      values: task -> [images, size].
    """
    count = len(next(iter(values.values())))
    columns = lambda task, of: dict(zip(self.labels.get(task, ()), of.T, strict=True))
    given = lambda task: values.get(task, np.zeros((count, 0)))
    bias, threshold = (
      np.array(list(self.postprocess.get(task, {}).get(field, {}).values()))
      for task, field in (("expression", "bias"), ("au", "threshold"))
    )
    expression = np.full(count, "")
    if "expression" in values:
      smallest = np.finfo(np.float64).tiny
      decides = np.log(np.maximum(values["expression"], smallest)) + bias
      expression = np.array(self.labels["expression"])[decides.argmax(-1)]
    return Prediction(
      va=columns("va", np.clip(given("va"), -1, 1).astype(np.float32)),
      expression=expression,
      expression_probability=columns("expression", given("expression").astype(np.float32)),
      au_probability=columns("au", given("au").astype(np.float32)),
      au=columns("au", given("au") >= threshold),
    )


class Portable(Predictor):
  """A model as a StableHLO program: outputs alone, and nothing of affjax's models is needed."""

  def __init__(
    self, config: Mapping[str, Any], exported: jax.export.Exported, **facts: Any
  ) -> None:
    """Takes a program.

    Args:
      config: of the run.
      exported: see `open_program`.
      **facts: of `Predictor`.
    """
    super().__init__(config, None, None, None, **facts)
    self._exported = exported
    self._program = jax.jit(exported.call)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """As of `Predictor`; () of a program that takes nothing."""
    taken = self._exported.in_avals
    return tuple(taken[0].shape[len(taken) :]) if taken else ()

  def fits(self, expected: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the program takes and gives what `contract.expected` says, whatever the batch."""
    of, tasks = expected[contract.PREPROCESS], expected[contract.LABELS]["tasks"]
    taken = tuple(part for part in (of["input"], of["present"]) if part)
    given = {task: of["output"] for task, of in tasks.items()}
    for tree, avals, own in (
      (self._exported.in_tree, self._exported.in_avals, (taken, {})),
      (self._exported.out_tree, self._exported.out_avals, given),
    ):
      parts, own_tree = jax.tree.flatten(
        own, is_leaf=lambda x: isinstance(x, dict) and "shape" in x
      )
      if tree != own_tree:
        return False
      for x, part in zip(avals, parts, strict=True):
        any_batch = x.shape and not isinstance(x.shape[0], int)
        if not any_batch or [*x.shape[1:], x.dtype.name] != [*part["shape"][1:], part["dtype"]]:
          return False
    return True

  def _call(
    self, name: str, images: np.ndarray, present: np.ndarray | None = None
  ) -> dict[str, jax.Array]:
    """The program gives probabilities; their logarithms are logits as good as the model's own."""
    if name != "outputs":
      raise ValueError(
        f"{contract.STABLEHLO} gives outputs alone, no {name}: export with --format=safetensors as"
        " well"
      )
    alone = present is None and len(self._exported.in_avals) == 2
    if alone:  # a clip of one frame: what is not there has no influence
      length = self._exported.in_avals[0].shape[1]
      present = np.arange(length) == np.zeros((len(images), 1))
      images = np.where(
        present.reshape(*present.shape, *[1] * (images.ndim - 1)),
        images[:, None],
        images.dtype.type(0),
      )
    given = self._program(images, *(() if present is None else (present,)))
    given = {task: y[:, 0] if alone else y for task, y in given.items()}
    finite = lambda p: jax.numpy.clip(p, 1e-30, 1 - 2**-24)
    of = {
      "expression": lambda p: jax.numpy.log(finite(p)),
      "au": lambda p: jax.scipy.special.logit(finite(p)),
    }
    return {task: of.get(task, lambda x: x)(y) for task, y in given.items()}


def cut(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
  """Start, number and bucket of the parts that `count` images are cut into.

  A part is padded where at most half of the bucket is; at most half of the work is for nothing.
  """
  start = 0
  while start < count:
    left = count - start
    above = next((size for size in sizes if size >= left), None)
    if above and above <= 2 * left:
      yield start, left, above
      return
    below = max((size for size in sizes if size <= left), default=sizes[0])
    yield start, min(below, left), below
    start += below


def _run(function: Callable[..., Any], batches: Iterable[tuple[int, Any]]) -> Any:
  """What a jitted function gives for batches of (rows that count, inputs): a tree of [rows, ...].

  A batch is read while the device works on the one before.
  """
  parts: list[Any] = []
  landed = lambda count, given: jax.tree.map(lambda x: x[:count], jax.device_get(given))
  flying = None
  for count, inputs in batches:
    given = function(*inputs)
    if flying is not None:
      parts.append(landed(*flying))
    flying = count, given
  parts.append(landed(*flying))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def open_procedure(config: Mapping[str, Any], path: Path) -> Any:
  """The procedure of a config that may be anybody's; ValueError names its file and the fault."""
  return _of_config(procedures.from_config, config, path)


def check_config(config: Mapping[str, Any], path: Path) -> None:
  """Raises ValueError, naming its file and the fault, for a config that no run could have."""
  _of_config(lambda config: None, config, path)


def _of_config(make: Callable[[Any], Any], config: Mapping[str, Any], path: Path) -> Any:
  try:
    _check(config)
    clips.Clips.of(config)
    return make(config)
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


def load(
  where: str | Path,
  checkpoint: str = "best",
  *,
  weights: str = "ema",
  settings: str | Path | None = None,
) -> Predictor:
  """Opens a run or an export of one.

  Args:
    where: folder of the run, or one that `python -m affjax.export` wrote.
    checkpoint: of a run, "best" by its metric, "latest", or a step.
    weights: of a run, "ema" (the moving average, where one is kept) or "raw".
    settings: file of `python -m affjax.calibrate --save`: how expressions and units are decided on.
      Smoothing and what else is of videos is left to `affjax.predict` and `affjax.submit`. None:
      those that an export holds, else the most probable expression, and units from 0.5 on.

  Raises:
    ValueError: no run, or no such checkpoint, there; the config is not one that affjax writes; or
      the files do not fit each other. Nothing of them is executed but a StableHLO program, where
      there are no other weights: names lead to affjax's own models.
  """
  where = Path(where)
  chosen = calibrate.read(settings) if settings else None
  if not (where / contract.PREPROCESS).is_file():
    return _load_run(where, checkpoint, weights, chosen)
  if (checkpoint, weights) != ("best", "ema"):
    raise ValueError(f"{where} is an export, of one checkpoint: leave out checkpoint and weights")
  return _load_export(where, chosen)


def check_outputs(config: Mapping[str, Any], where: Path) -> None:
  """Raises ValueError, saying what to do with it, for a run that has learnt without labels."""
  if config.get("labels") == {}:
    raise ValueError(
      f"{where} has learnt without labels and predicts nothing: start a run with labels from its"
      f" encoder, for example with --config=configs/vit_mtl.py --config.initialise.source={where}"
    )


def _load_run(
  where: Path, checkpoint: str, weights: str, settings: Mapping[str, Any] | None
) -> Predictor:
  config = workdir.read_config(where)
  check_outputs(config, where)
  state, procedure, step = restored(config, where, checkpoint, weights)
  return Predictor(config, procedure, *state, step=step, settings=settings)


def restored(
  config: Mapping[str, Any], where: Path, checkpoint: str, weights: str
) -> tuple[tuple[Any, Any], Any, int]:
  """Opens a checkpoint of a run on one device.

  Args:
    config: of the run.
    where: its folder.
    checkpoint: see `load`.
    weights: likewise.

  Returns:
    Parameters and model state, the run's procedure, and the checkpoint's step.

  Raises:
    ValueError: see `load`.
  """
  procedure = open_procedure(config, where / workdir.CONFIG)
  if weights not in ("ema", "raw"):
    raise ValueError(f"weights={weights!r}: use ema or raw")
  root = where / workdir.CHECKPOINTS
  step = checkpoints.pick(root, checkpoint)
  saved = checkpoints.Checkpoints(root, read_only=True)
  state, _ = saved.restore(step, experiment.abstract_state(procedure, _one_device()))
  saved.close()
  params = state.averaged if weights == "ema" else state.params
  return (params, state.model_state), procedure, step


def _one_device() -> jax.sharding.Mesh:
  return sharding.make_mesh(devices=jax.local_devices()[:1])


def _load_export(where: Path, settings: Mapping[str, Any] | None) -> Predictor:
  config = workdir.read_config(where)
  own = where / contract.SETTINGS
  own = calibrate.read(own) if own.is_file() else {}
  check_config(config, where / workdir.CONFIG)
  there = [n for n in (contract.WEIGHTS, contract.STABLEHLO) if (where / n).is_file()]
  if not there:
    raise ValueError(
      f"{where} holds neither {contract.WEIGHTS} nor {contract.STABLEHLO}: export the run again"
    )
  path = where / there[0]
  facts = {"step": contract.check_model(path), "settings": own if settings is None else settings}
  if path.name == contract.STABLEHLO:
    made: Predictor = Portable(config, open_program(path), **facts)
  else:
    procedure = open_procedure(config, where / workdir.CONFIG)
    shapes = experiment.abstract_state(procedure, mesh := _one_device())
    arrays = contract.read_weights(path, shapes.params, shapes.model_state)
    put = lambda tree: jax.device_put({"model": tree["model"]}, sharding.replicated(mesh))
    made = Predictor(config, procedure, *map(put, arrays), **facts)
  expects = lambda config: contract.expected(config, own, made.input_shape)
  expected = _of_config(expects, config, where / workdir.CONFIG)
  if isinstance(made, Portable) and not made.fits(expected):
    raise ValueError(f"{path}: takes or gives other than config.json says: export the run again")
  made.contract = contract.check(where, expected)
  return made


def open_program(path: Path) -> jax.export.Exported:
  """Reads a StableHLO file.

  Raises:
    ValueError: names the file; it is damaged, or calls what is outside of StableHLO.
  """
  try:
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    calls = _calls(exported)
  except (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(NotImplementedError, RecursionError, struct.error, jax.errors.JaxRuntimeError, ir.MLIRError),
  ) as e:
    raise ValueError(f"{path} is no StableHLO file of jax.export: export the run again") from e
  if calls - _CALLS:
    raise ValueError(f"{path} calls {', '.join(sorted(calls - _CALLS))[:200]}: it is not affjax's")
  return exported


def _calls(exported: jax.export.Exported) -> set[str]:
  """What a program calls outside of StableHLO; such a call might run anything."""
  found = set()

  def look(op: Any) -> Any:
    if op.name.endswith("custom_call"):
      found.add(op.attributes["call_target_name"].value)
    return ir.WalkResult.ADVANCE

  with ir.Context() as context:
    stablehlo.register_dialect(context)
    module = stablehlo.deserialize_portable_artifact(context, exported.mlir_module_serialized)
    module.operation.walk(look)
  return found
