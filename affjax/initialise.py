"""The first state of a run, taken in part from another run or from a file of arrays.

  config.init = "faceres-deep"  # what scripts/import_weights.py imported, or a source as below

  config.initialise = dict(
    source="runs/vit_mtl",      # a run's folder, an .npz or .safetensors file; None: at random
    checkpoint="best",          # of a run: best, latest or a step
    weights="ema",              # of a run: its moving average where it kept one, or "raw"
    include="encoder",          # patterns of names in *this* run, see `affjax.paths`
    exclude="encoder/positions",
    rename=(("^", "model/encoder/"),),  # from the source's names to this run's, re.sub in turn
    more=dict(prior=dict(source="runs/x", include="prior")),  # further sources, of other parameters
  )

What is taken stands in the parameters, in their moving average and in what else the model keeps;
step and optimiser start anew. A run that continues has its own checkpoint and takes nothing.

Positions of another grid of patches are resized, blocks stacked where this run's are (`scan`), or
taken apart, batch norms folded where this run's encoder has norm "none".

Imported weights, and files with public names (see `weights.convert`), are taken as the encoder. An
import also knows how its network saw pixels, and its licence and origin, which stand in the facts;
in other files the first layer is taken as it is, for pixels in [-1, 1]. Where the run's encoder
is not built as the weights need it, the report says so.
"""

import collections
import dataclasses
import hashlib
import importlib
import inspect
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from affjax import checkpoints, paths, workdir
from affjax.build import build
from affjax.data import paired
from affjax.models import convolutions, vit, weights
from affjax.state import TrainState

WEIGHTS = ("ema", "raw")
FIELDS = ("source", "checkpoint", "weights", "include", "exclude", "rename", "more")
ENCODER = "model/encoder/"
POSITIONS = "encoder/positions"  # how the names end, as a model may have several encoders
FILES = (".npz", ".safetensors")
# Outputs of one task, or of all of them.
HEADS = re.compile(
  r"decoder/(?:\w*heads/(?:uncertainty/)?(?:dense/(\w+)|shared|separate)/|(?:inner|outer)/|vectors$)"
)
# What is made from the config and not learnt.
MADE = re.compile(r"decoder/adjacency$")
# Fields of an encoder that its arrays do not show: others would not have the arrays' shapes.
UNSEEN = ("gelu", "norm_epsilon", "num_heads", "centre", "norm", "count_padding", "stride_in")


@dataclasses.dataclass(frozen=True)
class Taken:
  """What a run starts from.

  Attributes:
    arrays: name in this run -> array of its shape.
    facts: where they are from, as JSON.
    report: lines: what was taken, what starts at random, what of the source is not used.
  """

  arrays: dict[str, np.ndarray]
  facts: dict[str, Any]
  report: str


def start(config: Mapping[str, Any], state: TrainState) -> Taken | None:
  """Reads what a run's config asks for: `read`, where `config.init` may name the source.

  Args:
    config: of the run.
    state: of this run, or its shapes.

  Raises:
    ValueError: as `read`; or two sources are named.
  """
  section, init = dict(config.get("initialise") or {}), config.get("init")
  if init:
    if section.get("source") not in (None, "", init):
      raise ValueError(
        f"config.init={init!r} and config.initialise.source={section['source']!r}: name one source"
      )
    section["source"] = init
  taken = read(section, state, config["model"], config.get("labels"))
  if taken is None:
    return None
  optimizer = build(config["optimizer"], "affjax.optim", steps=config["steps"])
  frozen = paths.named(optimizer.frozen(state.params))
  made = [name for name, still in frozen.items() if still and name not in taken.arrays]
  if made:
    line = f"\n       warning: frozen as they are made: {len(made)} arrays: {_counts(made)}"
    taken = dataclasses.replace(taken, report=taken.report + line)
  return taken


def read(
  section: Mapping[str, Any] | None,
  state: TrainState,
  model: Mapping[str, Any] | None = None,
  labels: Mapping[str, Iterable[str]] | None = None,
) -> Taken | None:
  """Reads what is asked for and holds it against the state that it is for.

  Args:
    section: `config.initialise`; None, as in the configs of earlier runs: nothing is asked for.
    state: of this run, or its shapes.
    model: `config.model`, to be held against what public weights need; None: it is not.
    labels: `config.labels`, to be held against those of a run whose outputs are taken; likewise.

  Raises:
    ValueError: there is no such source, a pattern fits nothing, nothing is left to take, or an
      array has another shape or numbers that are none; or the weights are of another encoder, or
      outputs of other labels.
  """
  own = paths.named(state.params) | paths.named(state.model_state)
  own = {name: array for name, array in own.items() if not MADE.search(name)}
  parts = [_part(one, own, model, where) for where, one in _sections(section or {}).items()]
  if not parts:
    return None
  for part in parts:
    _check_labels(part, labels or {})
  for one, other in itertools.combinations(parts, 2):
    if twice := [name for name in one.taken if name in other.taken]:
      raise ValueError(
        f"{other.where} takes {paths.like('', twice)}, which {one.where} takes: set include or"
        " exclude, so that each has its own"
      )
  arrays = {name: array for part in parts for name, array in part.taken.items()}
  facts = parts[0].facts | ({"more": [part.facts for part in parts[1:]]} if parts[1:] else {})
  return Taken(arrays, facts, "\n".join(_report(part, own, arrays) for part in parts))


@dataclasses.dataclass(frozen=True)
class _Part:
  """What one source gives.

  Attributes:
    where: the section of the config that names it.
    taken: name in this run -> array.
    facts: where they are from.
    chosen: names in this run that are asked for.
    found: the source's arrays under names of this run.
    resized: those of `taken` that were of another size.
    differ: what the run's encoder has otherwise than the weights need it.
    labels: of the source, where it is a run.
  """

  where: str
  taken: dict[str, np.ndarray]
  facts: dict[str, Any]
  chosen: list[str]
  found: Mapping[str, np.ndarray]
  resized: dict[str, np.ndarray]
  differ: str
  labels: Mapping[str, Iterable[str]]


def _sections(section: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Where -> a section that names a source."""
  more = section.get("more") or {}
  if not (isinstance(more, Mapping) and all(isinstance(one, Mapping) for one in more.values())):
    raise ValueError(
      f"config.initialise.more={more!r}: use name=dict(source=...), as many as it is"
    )
  where = "config.initialise"
  sections = {where: section} | {f"{where}.more.{name}": one for name, one in more.items()}
  for where, one in sections.items():
    allowed = FIELDS if one is section else FIELDS[:-1]
    if (unknown := sorted(set(one) - set(allowed))) and (one.get("source") or one is not section):
      raise ValueError(f"{where} takes no {unknown}; it takes {', '.join(allowed)}")
  return {where: one for where, one in sections.items() if one.get("source")}


def _part(
  section: Mapping[str, Any], own: Mapping[str, Any], model: Mapping[str, Any] | None, where: str
) -> _Part:
  arrays, facts, labels = _open(section, where)
  chosen = _chosen(own, section, where)
  differ = _differences(facts, model, chosen[0])
  found = _stacked_as(_renamed(arrays, section.get("rename") or (), where), own)
  differ += _dropped(found, own)
  found = _normed_as(found, own, model)
  if not (common := [name for name in chosen if name in found]):
    raise ValueError(
      f"{where}: {facts['source']} has none of the parameters that are asked for, such as"
      f" {paths.like(next(iter(found), ''), chosen)}; it has {paths.like(chosen[0], found)}:"
      f" {where}.rename makes other names of them"
    )
  resized = _resized(found, own, common)
  taken = {name: resized.get(name, found[name]) for name in common}
  _check_shapes(taken, own, facts, where)
  taken = {name: array.astype(own[name].dtype) for name, array in taken.items()}
  _check_finite(taken, facts["source"], where)
  facts["arrays"] = len(taken)
  return _Part(where, taken, facts, chosen, found, resized, differ, labels)


def fill(state: TrainState, arrays: Mapping[str, jax.Array | np.ndarray]) -> TrainState:
  """The state with these arrays in it; pure, for `jax.jit`.

  Args:
    state: of a run at step 0.
    arrays: name -> array, as in `Taken`.
  """

  def one(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    name = paths.name(path)
    # A copy: the same buffer twice in a donated state would be donated twice.
    return jnp.copy(arrays[name]) if name in arrays else leaf

  put = lambda tree: jax.tree_util.tree_map_with_path(one, tree)
  return state.replace(
    params=put(state.params), model_state=put(state.model_state), ema=put(state.ema)
  )


def _open(
  section: Mapping[str, Any], where: str
) -> tuple[dict[str, np.ndarray], dict[str, Any], Mapping[str, Iterable[str]]]:
  """The source's arrays by name, where they are from, and the labels of a run."""
  path = weights.find(section["source"])
  if path.is_file() and path.suffix in FILES:
    return *_open_file(path), {}
  root = path / workdir.CHECKPOINTS
  if not root.is_dir():
    raise ValueError(
      f"{where}.source={section['source']!r} is neither the folder of a run nor a file"
      f" ({' or '.join(FILES)}) nor the name of imported weights ({', '.join(weights.KNOWN)})"
    )
  kind = section.get("weights") or WEIGHTS[0]
  if kind not in WEIGHTS:
    raise ValueError(f"{where}.weights={kind!r}: use one of {', '.join(WEIGHTS)}")
  step = checkpoints.pick(root, str(section.get("checkpoint") or "best"))
  folder = root / str(step)
  parts = checkpoints.read(folder, ("ema", "params", "model_state"))
  kind = "raw" if parts["ema"] is None else kind
  arrays = paths.named(parts["ema"] if kind == "ema" else parts["params"])
  digest = hashlib.sha256((folder / checkpoints.MANIFEST).read_bytes()).hexdigest()
  facts = {"source": str(path), "step": step, "weights": kind, "manifest_sha256": digest}
  labels = {}
  if (path / workdir.CONFIG).is_file():  # checkpoints alone will do
    config, starts = workdir.read_config(path), workdir.entries(path / workdir.STARTS)
    labels = config["labels"]
    if starts:
      facts["learnt_from"] = paired.names(config)
      facts["initialise"] = starts[0].get("initialise")
  return arrays | paths.named(parts["model_state"]), facts, labels


def _open_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  arrays = weights.read(path)
  with path.open("rb") as file:
    facts = {"source": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
  if said := weights.facts(path):
    facts |= {name: said[name] for name in ("name", "licence", "data", "citation", "model")}
    facts["provenance"] = f"{said['source']} (SHA-256 {said['sha256']})"
  elif public := weights.convert(arrays):
    arrays, facts["model"] = public.arrays, public.encoder
  prefix = ENCODER if "model" in facts else ""
  return {prefix + name: array for name, array in arrays.items()}, facts


def _section(model: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
  """Where the config has the encoder that a parameter is of, and its section."""
  if name.startswith("model/prior/") and model.get("prior"):
    return "config.model.prior.encoder", model["prior"]["encoder"]
  return "config.model.encoder", model["encoder"]


def _differences(facts: Mapping[str, Any], model: Mapping[str, Any] | None, chosen: str) -> str:
  """A line on what a run's encoder has otherwise than its weights need it; "": nothing.

  The encoder is that of `chosen`, the name of a parameter.

  Raises:
    ValueError: it is another encoder.
  """
  needs = facts.get("model")
  if not needs or not model:
    return ""
  (where, encoder), name = _section(model, chosen), needs["name"]
  if encoder["name"] != name:
    raise ValueError(
      f"{where} is {encoder['name']}, {facts['source']} holds weights of {name}: take"
      " other weights, or this encoder"
    )
  has = _defaults(encoder["name"]) | dict(encoder)
  # Heads that are not given are a variant's, and those are as the weights have them.
  fields = [f for f in UNSEEN if f in needs and (f != "num_heads" or encoder.get("width"))]
  differ = [field for field in fields if not _same(has.get(field), needs[field])]
  if not differ:
    return ""
  want = ", ".join(f"{field}={_first(needs[field])!r}" for field in differ)
  there = ", ".join(f"{field}={has.get(field)!r}" for field in differ)
  return f"\n       warning: these weights need {where} to have {want}; it has {there}"


def _defaults(name: str) -> dict[str, Any]:
  """Argument -> default of an encoder that a config could name."""
  parameters = inspect.signature(_encoder(name).__init__).parameters
  return {n: p.default for n, p in parameters.items()}


def _encoder(name: str) -> Any:
  """The class of an encoder that a config could name."""
  module, _, attribute = name.rpartition(".")
  return getattr(importlib.import_module(f"affjax.models.{module}"), attribute)


def _same(value: Any, need: Any) -> bool:
  """Whether a value is what is needed: a number, a text, numbers, or one of several texts."""
  if isinstance(need, list) and need and isinstance(need[0], str):
    return value in need
  try:
    return bool(np.allclose(value, need, rtol=1e-6, atol=0 if np.ndim(need) == 0 else 1e-6))
  except (TypeError, ValueError):
    return value == need


def _first(need: Any) -> Any:
  return need[0] if isinstance(need, list) and need and isinstance(need[0], str) else need


def _renamed(
  arrays: Mapping[str, np.ndarray], rules: Iterable[tuple[str, str]], where: str
) -> dict[str, np.ndarray]:
  """The arrays under the names of this run."""
  now = {name: name for name in arrays}
  for rule in rules:
    pair = isinstance(rule, list | tuple) and [type(part) for part in rule] == [str, str]
    if not pair:
      raise ValueError(f"{where}.rename: {rule!r} is not a (pattern, replacement)")
    try:
      after = {name: re.sub(*rule, current) for name, current in now.items()}
    except (re.error, IndexError, OverflowError, RecursionError) as e:
      raise ValueError(f"{where}.rename: {rule!r}: {e}") from e
    if after == now:
      like = paths.like(rule[0], now.values())
      raise ValueError(f"{where}.rename: {rule[0]!r} changes no name; there are {like}")
    now = after
  renamed: dict[str, str] = {}
  for name, current in now.items():
    if current in renamed:
      raise ValueError(f"{where}.rename makes {current} of both {renamed[current]} and {name}")
    renamed[current] = name
  return {current: arrays[name] for current, name in renamed.items()}


def _chosen(own: Mapping[str, Any], section: Mapping[str, Any], where: str) -> list[str]:
  """The names of this run that are included and not excluded."""
  fits = {}
  for field in ("include", "exclude"):
    if text := section.get(field):
      if not isinstance(text, str):
        raise ValueError(f"{where}.{field}={text!r}: use one pattern, as text")
      pattern = paths.pattern(text, f"{where}.{field}")
      fits[field] = {name for name in own if pattern.search(name)}
      if not fits[field]:
        like = paths.like(text, own)
        raise ValueError(f"{where}.{field}={text!r} fits no parameter; there are {like} and others")
  chosen = fits.get("include", set(own)) - fits.get("exclude", set())
  if not chosen:
    raise ValueError(f"{where}.exclude leaves nothing of what include fits")
  return [name for name in own if name in chosen]


def _stacked_as(
  found: Mapping[str, np.ndarray], own: Mapping[str, Any]
) -> Mapping[str, np.ndarray]:
  """The source's blocks in one array or one by one, as each part of this run has them."""
  blocks = re.compile(r"(.*/)blocks/(\D?)")
  ways = {m[1]: bool(m[2]) for m in map(blocks.match, own) if m}  # part -> whether it stacks them
  part = lambda name: m[1] if (m := blocks.match(name)) else ""
  named = lambda arrays, way: {n: a for n, a in arrays.items() if ways.get(part(n)) is way}
  apart = weights.unstack({n: a for n, a in found.items() if part(n) in ways})
  others = {n: a for n, a in found.items() if part(n) not in ways}
  return others | named(apart, False) | weights.stack(named(apart, True))


def _layer(name: str) -> str:
  """The layer of a convolution's kernel, bias or norm."""
  return name.rpartition("/")[0].removesuffix("/norm")


def _normed_as(
  found: Mapping[str, np.ndarray], own: Mapping[str, Any], model: Mapping[str, Any] | None
) -> Mapping[str, np.ndarray]:
  """The source's batch norms folded into those layers of this run that have none."""
  normed = {_layer(name) for name in own if name.endswith(("/norm/mean", "/norm/scale"))}
  plain = {_layer(name) for name in own if name.endswith("/kernel")} - normed
  given, fold = {}, collections.defaultdict(dict)
  for name, array in found.items():
    if _layer(name) in plain:
      fold[_epsilon(model, name)][name] = array
    else:
      given[name] = array
  for epsilon, arrays in fold.items():
    given |= weights.fold(arrays, epsilon)
  return given


def _epsilon(model: Mapping[str, Any] | None, name: str) -> float:
  """Of the batch norms of the encoder that a parameter is of."""
  encoder = _encoder(_section(model, name)[1]["name"]) if model else None
  return getattr(encoder, "epsilon", convolutions.EPSILON)


def _dropped(found: Mapping[str, np.ndarray], own: Mapping[str, Any]) -> str:
  """A line on batch norms of the source where this run has norms of another kind; "": none."""
  layers = [name.removesuffix("mean") for name in found if name.endswith("/norm/mean")]
  lost = [layer for layer in layers if f"{layer}scale" in own and f"{layer}mean" not in own]
  if not lost:
    return ""
  return (
    f"\n       warning: statistics of {len(lost)} batch norms have no place here, as this run's"
    f" norms are of another kind (field norm of the encoder), such as {lost[0].removesuffix('/')}"
  )


def _resized(
  found: Mapping[str, np.ndarray], own: Mapping[str, Any], common: Iterable[str]
) -> dict[str, np.ndarray]:
  """Position embeddings of another number of patches, made to fit."""
  positions = [name for name in common if name.endswith(POSITIONS)]
  resized = {name: _on_grid(found[name], own[name].shape) for name in positions}
  return {name: array for name, array in resized.items() if array is not None}


def _on_grid(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
  """Position embeddings on another grid; None: they fit as they are, or there is no way."""
  if array.shape == shape or array.ndim != 3 or array.shape[::2] != shape[::2] or not array.size:
    return None
  # One more than a square: the first is that of a class token.
  (_, first), (side, class_token) = (_grid(n) for n in (array.shape[1], shape[1]))
  if first != class_token:
    return None
  return np.asarray(vit.resize_positions(array, (side, side), class_token=class_token))


def _grid(length: int) -> tuple[int, bool]:
  """Side of the square of patches, and whether there is a class token beside them."""
  class_token = math.isqrt(length) ** 2 != length
  return math.isqrt(length - class_token), class_token


def _check_shapes(
  taken: Mapping[str, np.ndarray], own: Mapping[str, Any], facts: Mapping[str, Any], where: str
) -> None:
  wrong = [name for name, array in taken.items() if array.shape != own[name].shape]
  if not wrong:
    return
  first = ", ".join(f"{n} is {taken[n].shape} there, {own[n].shape} here" for n in wrong[:2])
  more = f", and {len(wrong) - 2} more differ" if len(wrong) > 2 else ""
  few = f"='{'|'.join(wrong)}'" if len(wrong) <= 4 else ""
  needs = f" (config.model.encoder that it fits: {facts['model']})" if "model" in facts else ""
  raise ValueError(
    f"{where}: {facts['source']}: {first}{more}: leave out what is of another size"
    f" with {where}.exclude{few}{needs}"
  )


def _check_labels(part: _Part, labels: Mapping[str, Iterable[str]]) -> None:
  """Raises ValueError where outputs are taken that mean something else in this run."""
  for head in filter(None, map(HEADS.search, part.taken)):
    for task in [head[1]] if head[1] else sorted(part.labels.keys() & labels.keys()):
      theirs, own = (list(of.get(task, ())) for of in (part.labels, labels))
      if theirs and own and theirs != own:
        raise ValueError(
          f"{part.where}: the {task} of {part.facts['source']} is {', '.join(theirs)}, here it is"
          f" {', '.join(own)}: leave out what gives it with {part.where}.exclude='decoder', or set"
          f" config.labels.{task}"
        )


def _check_finite(taken: Mapping[str, np.ndarray], source: str, where: str) -> None:
  wrong = [name for name, array in taken.items() if not np.isfinite(array).all()]
  if wrong:
    more = f", and {len(wrong) - 1} more do" if len(wrong) > 1 else ""
    raise ValueError(
      f"{where}: {source}: {wrong[0]} holds NaN or infinity{more}: leave it out with"
      f" {where}.exclude, or take another source"
    )


def _report(part: _Part, own: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
  """What is taken of a source, and what is not; `arrays`: what is taken of any."""
  facts, taken = part.facts, part.taken
  from_run = f" step {facts['step']}, {facts['weights']} weights" if "step" in facts else ""
  numbers = sum(array.size for array in taken.values())
  asked = set(part.chosen)
  lines = [
    f"start  {facts['source']}{from_run}",
    f"       taken: {len(taken)} of {len(own)} arrays, {numbers:,} numbers: {_counts(taken)}",
  ]
  lines += [
    f"       resized: {n} {part.found[n].shape} -> {array.shape}"
    for n, array in part.resized.items()
  ]
  for what, names in (
    ("at random, not asked for", [n for n in own if n not in asked and n not in arrays]),
    ("at random, not in the source", [n for n in part.chosen if n not in arrays]),
    ("of the source, not used", [n for n in part.found if n not in taken]),
  ):
    if names:
      lines.append(f"       {what}: {len(names)} arrays: {_counts(names)}")
  return "\n".join(lines) + part.differ


def _counts(names: Iterable[str]) -> str:
  """How many arrays there are of each part, such as model/encoder or log_variance."""
  part = lambda name: "/".join(name.split("/")[:-1][:2]) or name
  parts = collections.Counter(map(part, names))
  return ", ".join(f"{name} {count}" for name, count in parts.items())
