"""Optimisers and schedules, as optax chains; groups of parameters that learn in their own way.

A section `config.optimizer` names one of `adamw`, `sgd`, `lars` and its arguments. `groups` sets
some parameters apart by their names (see `affjax.paths`), the first pattern that fits counts:

  config.optimizer.groups = dict(
    encoder=dict(pattern="encoder", freeze=True),
    tokens=dict(pattern="decoder/tokens", learning_rate=1e-4, weight_decay=0.0),
  )

A field of a group means what it means in the section and stands in its place: a learning rate is a
peak, no factor. What a group does not say it has from the section. From the shell:
`--config.optimizer.groups="{'encoder': {'pattern': 'encoder', 'freeze': True}}"`, and a leaf that
the config has: `--config.optimizer.groups.encoder.freeze=false`.

A group may also begin later: `head=dict(pattern="decoder"), encoder=dict(pattern="encoder",
thaw=600)` is 600 updates of the head alone, then of both. Until it thaws a group is frozen, its
batch statistics too; then its schedule begins, with its warm-up.
"""

import dataclasses
import functools
import inspect
import itertools
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from affjax import paths

Groups = Mapping[str, Mapping[str, Any]]

SCHEDULES = ("cosine", "linear", "exponential", "inverse_sqrt", "constant")
# The group of what no pattern fits.
OTHERS = "others"
# Vectors (biases, norms' scales) and scalars (log variances) are never decayed, nor these matrices.
NOT_DECAYED = re.compile(r"token|position|register")
# Blocks that are one module, each parameter with a first axis of blocks: no number follows.
STACKED = re.compile(r"(?:^|/)\w*blocks/(?!\d+/)")
# Parts of an encoder that follow its blocks.
BEHIND = ("norm/", "head/", "dense/", "embedding/")
# Of a model, or of each of several that are one.
ENCODER = re.compile(r"^model/(?:members/\d+/)?encoder/(.*)")


class Optimizer(NamedTuple):
  """How parameters learn.

  Attributes:
    transform: gradients to updates.
    learning_rate: step -> that of the parameters of no group.
    frozen: parameters and a step, None: the last -> tree of booleans, which of them do not learn
      then: no gradient is needed.
    stages: steps from which on less is frozen, the first of them 0.
  """

  transform: optax.GradientTransformation
  learning_rate: optax.Schedule
  frozen: Callable[..., Any] = lambda params, step=None: jax.tree.map(lambda _: False, params)
  stages: tuple[int, ...] = (0,)


def learning_rate_schedule(
  *,
  learning_rate: float,
  steps: int,
  warmup_steps: int,
  kind: str = "cosine",
  final_fraction: float = 0.0,
  where: str = "config.optimizer",
) -> optax.Schedule:
  """Linear warm-up to `learning_rate`, then what `kind` says up to the last step.

  Args:
    learning_rate: peak.
    steps: updates of the whole run.
    warmup_steps: how many of them rise.
    kind: "cosine", "linear" or "exponential" down to the fraction; "inverse_sqrt", the peak times
      sqrt(warmup_steps / step) (Vaswani et al., 2017, arXiv:1706.03762); or "constant".
    final_fraction: of the peak, what is left at the end; a rate that is multiplied by .99 every
      epoch has .99**epochs.
    where: the section of the config, for errors.

  Raises:
    ValueError: another kind, or numbers out of their range.
  """
  if kind not in SCHEDULES:
    allowed = "'cosine', 'linear', 'exponential', 'inverse_sqrt' or 'constant'"
    raise ValueError(f"{where}.schedule={kind!r}: use {allowed}")
  if not 0 <= warmup_steps <= steps:
    raise ValueError(f"{where}.warmup_steps={warmup_steps} is not within config.steps={steps}")
  if kind == "inverse_sqrt" and not warmup_steps:
    raise ValueError(f"{where}.warmup_steps=0: use 1 or more with schedule 'inverse_sqrt'")
  if not 0 <= final_fraction <= 1 or (kind == "exponential" and final_fraction == 0):
    above = "above 0 for schedule 'exponential', " if kind == "exponential" else ""
    raise ValueError(f"{where}.final_fraction={final_fraction}: use {above}from 0 to 1")
  rest = max(steps - warmup_steps, 1)
  if kind == "cosine":
    after = optax.cosine_decay_schedule(learning_rate, rest, final_fraction)
  elif kind == "linear":
    after = optax.linear_schedule(learning_rate, learning_rate * final_fraction, rest)
  elif kind == "exponential":
    after = optax.exponential_decay(learning_rate, rest, final_fraction)
  elif kind == "inverse_sqrt":
    since = lambda step: warmup_steps + jnp.maximum(step, 0)  # asked during the warm-up, too
    after = lambda step: learning_rate * jnp.sqrt(warmup_steps / since(step))
  else:
    after = optax.constant_schedule(learning_rate)
  warmup = optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1))
  return optax.join_schedules([warmup, after], [warmup_steps])


def decayed(params: Any) -> Any:
  """Tree of booleans: which parameters weight decay applies to."""

  def one(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    name = paths.name(path)
    return leaf.ndim - bool(STACKED.search(name)) >= 2 and not NOT_DECAYED.search(name)

  return jax.tree_util.tree_map_with_path(one, params)


def adamw(
  *,
  steps: int,
  learning_rate: float = 1e-3,
  warmup_steps: int = 0,
  schedule: str = "cosine",
  final_fraction: float = 0.0,
  weight_decay: float = 0.05,
  clip_norm: float = 1.0,
  b1: float = 0.9,
  b2: float = 0.999,
  epsilon: float = 1e-8,
  layer_decay: float = 1.0,
  groups: Groups | None = None,
) -> Optimizer:
  """AdamW (Loshchilov & Hutter, 2019, arXiv:1711.05101) after clipping by the global norm.

  Args:
    steps: updates of the whole run.
    learning_rate: peak.
    warmup_steps: linear from 0 to the peak.
    schedule: what follows, see `learning_rate_schedule`.
    final_fraction: likewise.
    weight_decay: decoupled, times the learning rate; matrices only, see `decayed`. It is
      1 where a published decay is subtracted as it is and equal to the learning rate at each step.
    clip_norm: of the whole gradient, frozen parameters left out; 0: no clipping.
    b1: decay of the first moment.
    b2: decay of the second moment.
    epsilon: added to the root of the second moment.
    layer_decay: factor on the learning rate for each layer below the decoder, see `layer_factors`.
    groups: name -> `pattern` and what is different for the parameters that it fits: `freeze`,
      `thaw`, `learning_rate`, `warmup_steps`, `schedule`, `final_fraction`, `weight_decay`.

  Raises:
    ValueError: a number is out of its range or a group is not as above; on `init`, that a group or
      `layer_decay` does not fit the parameters.
  """
  others = Group(learning_rate, warmup_steps, schedule, final_fraction, weight_decay)
  for field, value, below in (("b1", b1, 1), ("b2", b2, 1), ("epsilon", epsilon, math.inf)):
    _check(f"config.optimizer.{field}", value, below)
  update = lambda rate, decay: optax.adamw(rate, b1, b2, epsilon, weight_decay=decay, mask=decayed)
  return _optimizer(update, others, groups, steps, clip_norm, layer_decay)


def sgd(
  *,
  steps: int,
  learning_rate: float = 1e-2,
  warmup_steps: int = 0,
  schedule: str = "cosine",
  final_fraction: float = 0.0,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  momentum: float = 0.9,
  nesterov: bool = False,
  layer_decay: float = 1.0,
  groups: Groups | None = None,
) -> Optimizer:
  """Gradient descent with momentum (Sutskever et al., 2013); arguments as for `adamw`, but:

  Args:
    weight_decay: times the parameter, added to the gradient before the momentum: the L2 penalty
      that a published weight decay of SGD is.
    momentum: v = momentum * v + gradient; the step is -rate * v. 0: none.
    nesterov: the step is -rate * (gradient + momentum * v).
  """
  others = Group(learning_rate, warmup_steps, schedule, final_fraction, weight_decay)
  _check("config.optimizer.momentum", momentum, 1)
  update = lambda rate, decay: optax.chain(
    optax.add_decayed_weights(decay, decayed), optax.sgd(rate, momentum or None, nesterov)
  )
  return _optimizer(update, others, groups, steps, clip_norm, layer_decay)


def lars(
  *,
  steps: int,
  learning_rate: float = 0.2,
  warmup_steps: int = 0,
  schedule: str = "cosine",
  final_fraction: float = 0.0,
  weight_decay: float = 1.5e-6,
  clip_norm: float = 0.0,
  momentum: float = 0.9,
  trust: float = 1e-3,
  layer_decay: float = 1.0,
  groups: Groups | None = None,
) -> Optimizer:
  """LARS (You et al., 2017, arXiv:1708.03888) for large batches; arguments as for `sgd`, but:

  Parameters that do not decay are not scaled by their norm either, as is usual (INFERRED from
  BYOL, Grill et al., 2020, arXiv:2006.07733).

  Args:
    trust: the step of a matrix is as long as this times its own norm, before the learning rate.
  """
  others = Group(learning_rate, warmup_steps, schedule, final_fraction, weight_decay)
  _check("config.optimizer.momentum", momentum, 1)
  update = lambda rate, decay: optax.lars(
    rate, decay, decayed, trust, trust_ratio_mask=_scaled, momentum=momentum
  )
  return _optimizer(update, others, groups, steps, clip_norm, layer_decay)


def _scaled(params: Any) -> Any:
  """What LARS scales; a stack of blocks would have one norm for all of them."""
  if stacked := next(filter(STACKED.search, paths.named(params)), None):
    raise ValueError(
      f"optim.lars goes by each layer's norm, and {stacked} holds several layers: use blocks that"
      " are not stacked, or another config.optimizer.name"
    )
  return decayed(params)


@dataclasses.dataclass(frozen=True)
class Group:
  """How a group of parameters learns; the fields as for `adamw`.

  Attributes:
    freeze: it does not: not a bit changes, and the optimiser keeps nothing of it.
    thaw: number of updates until which it does not; its schedule begins there.
    pattern: of the names, see `affjax.paths`; None: of all.
    name: the group's.
  """

  learning_rate: float
  warmup_steps: int
  schedule: str
  final_fraction: float
  weight_decay: float
  freeze: bool = False
  thaw: int = 0
  pattern: str | None = None
  name: str = OTHERS

  def __post_init__(self) -> None:
    for field in ("learning_rate", "final_fraction", "weight_decay"):
      _check(f"{self.where}.{field}", getattr(self, field))
    if not isinstance(self.warmup_steps, numbers.Integral):
      raise ValueError(f"{self.where}.warmup_steps={self.warmup_steps!r}: use a whole number")
    if type(self.freeze) is not bool:
      raise ValueError(f"{self.where}.freeze={self.freeze!r}: use True or False")

  @property
  def where(self) -> str:
    """The section of the config."""
    return "config.optimizer" + ("" if self.pattern is None else f".groups.{self.name}")

  def rate(self, steps: int) -> optax.Schedule:
    """The learning rate as a function of the updates since it thawed, in a run of so many."""
    if type(self.thaw) is not int or not 0 <= self.thaw < max(steps, 1):
      raise ValueError(
        f"{self.where}.thaw={self.thaw!r}: use a number of updates from 0 to less than"
        f" config.steps={steps}; what never learns has freeze=True"
      )
    rest = steps - self.thaw
    if self.thaw and self.warmup_steps > rest:
      raise ValueError(
        f"{self.where}.warmup_steps={self.warmup_steps} is not within the {rest} updates after"
        f" {self.where}.thaw={self.thaw}"
      )
    return learning_rate_schedule(
      learning_rate=self.learning_rate,
      steps=rest,
      warmup_steps=self.warmup_steps,
      kind=self.schedule,
      final_fraction=self.final_fraction,
      where=self.where,
    )

  def last(self, steps: int) -> float:
    """The learning rate that a run of so many steps ends with."""
    if self.schedule == "inverse_sqrt":
      return self.learning_rate * (self.warmup_steps / (steps - self.thaw)) ** 0.5
    return self.learning_rate * self.final_fraction

  def fits(self, name: str) -> bool:
    """Whether a parameter may be in it."""
    return self.pattern is None or bool(
      paths.pattern(self.pattern, f"{self.where}.pattern").search(name)
    )


def _check(field: str, value: Any, below: float = math.inf) -> None:
  """Raises ValueError unless a field's value is a number from 0 on."""
  number = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if not (number and 0 <= value < below):
    end = f" up to, but not, {below:g}" if math.isfinite(below) else " on"
    raise ValueError(f"{field}={value!r}: use a number from 0{end}")


def _read_groups(sections: Groups | None, others: Group) -> list[Group]:
  """The groups of a config in its order, and last that of all others.

  Raises:
    ValueError: a group has no pattern, or fields that it cannot have.
  """
  groups = []
  allowed = [field.name for field in dataclasses.fields(Group) if field.name != "name"]
  for name, section in (sections or {}).items():
    where = f"config.optimizer.groups.{name}"
    if name == OTHERS:
      raise ValueError(f"{where}: that is the group of what no pattern fits; use another name")
    if not isinstance(section, Mapping) or not section.get("pattern"):
      raise ValueError(f"{where} needs a pattern, such as pattern='encoder'")
    if unknown := sorted(set(section) - set(allowed)):
      raise ValueError(f"{where} takes no {', '.join(unknown)}; it takes {', '.join(allowed)}")
    paths.pattern(section["pattern"], f"{where}.pattern")
    given = {field: value for field, value in section.items() if value is not None}
    if given.get("freeze") and given.get("thaw"):
      raise ValueError(f"{where} has freeze=True and thaw={given['thaw']}: use one of them")
    groups.append(dataclasses.replace(others, **given, name=name))
  return [*groups, others]


def assign(params: Any, groups: list[Group]) -> Any:
  """Tree of names: the first of the groups that fits each parameter.

  Raises:
    ValueError: a group gets nothing, or all is frozen.
  """
  owner = _owners(params, groups)
  names = list(owner)
  for group in groups[:-1]:
    if group.name in owner.values():
      continue
    given = f"{group.where}.pattern={group.pattern!r}"
    if any(map(group.fits, names)):
      raise ValueError(f"{given}: groups before it have all that it fits; write it before them")
    raise ValueError(
      f"{given} fits no parameter; there are {paths.like(group.pattern, names)} and others"
    )
  if all(group.freeze for group in groups if group.name in owner.values()):
    raise ValueError("config.optimizer.groups freeze every parameter: nothing is left to learn")
  return jax.tree_util.tree_map_with_path(lambda path, _: owner[paths.name(path)], params)


def _owners(params: Any, groups: list[Group]) -> dict[str, str]:
  """Name of each parameter -> name of the first of the groups that fits it."""
  first = lambda name: next(group.name for group in groups if group.fits(name))
  return {name: first(name) for name in paths.named(params)}


def layer_factors(params: Any, decay: float) -> Any:
  """Factor on each parameter's learning rate, smaller the further it is from the output.

  Layer-wise decay (Clark et al., 2020, arXiv:2003.10555; for images Bao et al., 2021,
  arXiv:2106.08254, whose numbering this is): of an encoder of `depth` blocks, block i has
  decay ** (depth - i), what is before the blocks (stem, positions) decay ** (depth + 1); what is
  behind the blocks (norm, fully connected layers) and all outside the encoder have 1. A DenseNet's
  transition has what the block before it has.

  Args:
    params: names such as "model/encoder/blocks/<i>/..."; or, blocks being one stacked module,
      "model/encoder/blocks/...", with a first axis of blocks.
    decay: in (0, 1].

  Returns:
    The tree of floats; for stacked blocks arrays [depth, 1, ...] of the parameter's rank.

  Raises:
    ValueError: the encoder has no blocks.
  """
  inside = {n: m[1] for n in paths.named(params) if (m := ENCODER.match(n))}
  depth = _depth(params, inside)

  def factor(path: tuple[Any, ...], leaf: jax.Array) -> float | np.ndarray:
    rest = inside.get(paths.name(path), "norm/")
    if rest.startswith(BEHIND):
      return 1.0
    if block := re.match(r"(?:blocks|transitions)/(\d+)/", rest):
      return decay ** (depth - int(block[1]))
    if rest.startswith("blocks/"):
      each = np.array([decay ** (depth - index) for index in range(depth)], np.float32)
      return each.reshape(depth, *[1] * (leaf.ndim - 1))
    return decay ** (depth + 1)

  return jax.tree_util.tree_map_with_path(factor, params)


def _depth(params: Any, inside: Mapping[str, str]) -> int:
  """How many blocks the encoder has; `inside`: name -> its part after that of the encoder."""
  named = paths.named(params)
  for name, rest in inside.items():
    if rest.startswith("blocks/") and STACKED.search(name):
      return named[name].shape[0]
  numbers = [int(m[1]) for rest in inside.values() if (m := re.match(r"blocks/(\d+)/", rest))]
  if not numbers:
    parts = sorted({rest.partition("/")[0] for rest in inside.values()})
    raise ValueError(
      "config.optimizer.layer_decay needs an encoder with blocks (model/encoder/blocks/...); this"
      f" one has {', '.join(parts) or 'no parameters'}: use layer_decay=1.0, or groups"
    )
  return max(numbers) + 1


def _optimizer(
  update: Callable[[optax.Schedule, float], optax.GradientTransformation],
  others: Group,
  sections: Groups | None,
  steps: int,
  clip_norm: float,
  layer_decay: float,
) -> Optimizer:
  """Clipping, then each group's update, then the factors of the layers."""
  _check("config.optimizer.clip_norm", clip_norm)
  if not 0 < layer_decay <= 1:
    raise ValueError(f"config.optimizer.layer_decay={layer_decay}: use above 0 up to 1 (1: none)")
  groups = _read_groups(sections, others)
  rates = {group.name: group.rate(steps) for group in groups}
  parts = [optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()]
  stages = tuple(sorted({0, *(group.thaw for group in groups)}))
  still = lambda group, step: group.freeze or (step is not None and step < group.thaw)

  def frozen(tree: Any, step: int | None = None) -> Any:
    """Also of a part of the parameters, in which a group may have nothing."""
    owner = _owners(tree, groups)
    freezes = {group.name: still(group, step) for group in groups}
    return jax.tree_util.tree_map_with_path(lambda path, _: freezes[owner[paths.name(path)]], tree)

  if len(groups) == 1:
    parts.append(update(rates[OTHERS], others.weight_decay))
  else:
    # Frozen parameters have no say in the norm that is clipped, so they are dropped before.
    parts.insert(0, optax.masked(optax.set_to_zero(), frozen))
    for stage, end in itertools.pairwise(stages):
      only = functools.partial(frozen, step=stage)
      parts.insert(0, optax.masked(_until(end), only))

    def of_group(group: Group) -> optax.GradientTransformation:
      own = update(rates[group.name], group.weight_decay)
      begun = lambda step: step >= group.thaw
      return optax.conditionally_mask(own, begun) if group.thaw else own

    parts.append(
      optax.partition(
        {group.name: optax.identity() if group.freeze else of_group(group) for group in groups},
        lambda tree: assign(tree, groups),
      )
    )
  if layer_decay < 1:
    parts.append(_scale_by_layer(layer_decay))
  return Optimizer(optax.chain(*parts), rates[OTHERS], frozen, stages)


def _until(step: int) -> optax.GradientTransformation:
  """Gradients are 0 until then."""
  return optax.conditionally_mask(optax.identity(), lambda count: count >= step)


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
  """Updates times `layer_factors`."""

  def init(params: Any) -> optax.EmptyState:
    layer_factors(params, decay)  # what it refuses is said here
    return optax.EmptyState()

  def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, Any]:
    del params
    return jax.tree.map(jnp.multiply, updates, layer_factors(updates, decay)), state

  return optax.GradientTransformation(init, update)


def describe(params: Any, config: Mapping[str, Any]) -> list[str]:
  """A line for each group: how many numbers it has and how they learn.

  Args:
    params: the parameters, or their shapes.
    config: of the run.

  Raises:
    ValueError: a group or `layer_decay` does not fit the parameters.
  """
  section = config["optimizer"]
  parameters = inspect.signature(globals()[section["name"].rpartition(".")[2]]).parameters
  given = {name: parameter.default for name, parameter in parameters.items()} | dict(section)
  fields = [f.name for f in dataclasses.fields(Group) if f.default is dataclasses.MISSING]
  groups = _read_groups(given["groups"], Group(**{name: given[name] for name in fields}))
  rows = list(
    zip(*map(jax.tree.leaves, (assign(params, groups), params, decayed(params))), strict=True)
  )
  lines = []
  for group in groups:
    own = [(leaf.size, decays) for name, leaf, decays in rows if name == group.name]
    total = sum(size for size, _ in own)
    line = f"{group.name}: {total:,} numbers in {len(own)} arrays, "
    if group.freeze:
      start = config.get("initialise") or {}
      known = config.get("init") or start.get("source") or start.get("more")
      random = "; warning: they stay as they are made, as neither config.init nor"
      random += " config.initialise.source names a start"
      lines.append(line + "frozen" + random * (not known))
      continue
    line += f"frozen for {group.thaw} steps, then " * bool(group.thaw)
    line += f"learning rate {group.learning_rate:g} ({group.schedule}"
    line += f" to {group.last(config['steps']):g}" * (group.schedule != "constant")
    line += f" after {group.warmup_steps} steps of warm-up), weight decay {group.weight_decay:g}"
    lines.append(line + f" on {sum(size for size, decays in own if decays):,} of them")
  if given["layer_decay"] < 1:
    factors = [np.min(f) for f in jax.tree.leaves(layer_factors(params, given["layer_decay"]))]
    lines.append(
      f"learning rates times {given['layer_decay']:g} a layer below the decoder, {min(factors):.3g}"
      " at the stem"
    )
  return lines
