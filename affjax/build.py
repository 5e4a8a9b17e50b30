"""Turns a section of a config into the object that it describes.

A config may come from others, with a run. So a name leads to what is public and defined in the
modules that the caller gives, never to what these import.
"""

import functools
import importlib
import inspect
import numbers
import pkgutil
import re
import reprlib
import typing
from collections.abc import Callable, Mapping
from types import ModuleType, NoneType, UnionType
from typing import Any

_NAME = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*){1,8}", re.ASCII)
# Annotation -> what a config may hold for it; of others nothing is known here.
_KINDS = {int: numbers.Integral, float: numbers.Real, bool: bool, str: str, NoneType: NoneType}

# Argument -> how its number is wrong, and what to use; of all that take one of that name.
_SHARE = (lambda value: not 0 <= value < 1, "a share from 0 up to, but not, 1")
_PROBABILITY = (lambda value: not 0 <= value <= 1, "a number from 0 to 1")
_AMOUNT = (lambda value: not 0 <= value < float("inf"), "a number from 0 on")
_RANGES = {
  **dict.fromkeys(("dropout_rate", "drop_path_rate", "ema_decay"), _SHARE),
  **dict.fromkeys(
    ("flip_rate", "grey_rate", "erase_rate", "erase_area", "channel_drop_rate"), _PROBABILITY
  ),
  **dict.fromkeys(
    ("scale", "shift", "brightness", "contrast", "cast", "rotation", "mixup_alpha"), _AMOUNT
  ),
  "multiplier": (lambda value: not 0 < value <= 16, "a number above 0, at most 16"),
}


def build(section: Mapping[str, Any], package: str, **extra: Any) -> Any:
  """Calls what `section["name"]` points at with the rest of the section as its arguments.

  Args:
    section: `name`, such as "vit.ViT" (a module of `package`, then a class or function of it), and
      the arguments of the call under their own names.
    package: where the module is, for example "affjax.models"; or the one module that may be named,
      such as "affjax.optim", of which names are "optim.adamw".
    **extra: arguments that a config does not hold, such as `rngs` or a size known to the caller.

  Returns:
    What the call returns: an instance where the name is a class's.

  Raises:
    ValueError: the name leads nowhere, or the arguments are not the ones that the call takes.
      An import that fails inside an existing module raises what it raised.
  """
  name, target, arguments = _read(section, package)
  _check_arguments(name, target, arguments, extra)
  return target(**arguments, **extra)


def bind(section: Mapping[str, Any], package: str, given: int) -> Callable[..., Any]:
  """As `build`, for a function that is called later with its first `given` arguments."""
  name, target, arguments = _read(section, package)
  later = [parameter.name for parameter in _parameters(target)[:given]]
  if len(later) < given:
    raise ValueError(f"{name} takes {len(later)} arguments, and {given} are given to it later")
  _check_arguments(name, target, arguments, dict.fromkeys(later))
  return functools.partial(target, **arguments)


def find(section: Mapping[str, Any], package: str) -> Any:
  """What `section["name"]` points at, as in `build`; it is not called."""
  return _read(section, package)[1]


def chain(model: Mapping[str, Any]) -> str:
  """A model's networks in words, such as "2 x (vit.ViT mu/16 -> decoders.Linear)"."""
  parts = (model.get(part) for part in ("encoder", "temporal", "decoder", "pixel_decoder"))
  words = (filter(None, (part["name"], part.get("variant"))) for part in parts if part)
  said = " -> ".join(map(" ".join, words)) or model["name"]
  if second := model.get("prior"):
    said += f" beside {chain(second)}"
  return f"{model['members']} x ({said})" if model.get("members", 1) > 1 else said


def _read(section: Mapping[str, Any], package: str) -> tuple[str, Any, dict[str, Any]]:
  try:
    arguments = dict(section)
  except (TypeError, ValueError):
    raise ValueError(
      f"{reprlib.repr(section)} is no section of {package}: it has no fields"
    ) from None
  name = arguments.pop("name", None)
  if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
    raise ValueError(
      f"name {reprlib.repr(name)}: a section of {package} needs name='module.Attribute'"
    )
  return name, _resolve(name, package), arguments


def _resolve(name: str, package: str) -> Any:
  module_name, _, attribute = name.rpartition(".")
  path = f"{package}.{module_name}"
  if not _modules(package) and package.endswith(f".{module_name}"):
    path = package  # the one module
  try:
    module = importlib.import_module(path)
  except ModuleNotFoundError as error:
    # Only the absence of `path` itself (or of a package on the way to it) is a mistake in the
    # name; a dependency missing inside the module must be seen as what it is.
    if error.name is None or not f"{path}.".startswith(f"{error.name}."):
      raise
    has = _modules(package) or [package.rpartition(".")[2]]
    raise ValueError(f"{name!r}: {package} has no module {module_name!r}; it has {has}") from error
  if attribute not in _callables(module):
    raise ValueError(f"{name!r}: {path} has no {attribute!r}; it has {_callables(module)}")
  return getattr(module, attribute)


def _check_arguments(
  name: str, target: Any, arguments: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
  twice = sorted(set(arguments) & set(extra))
  if twice:
    raise ValueError(f"{name} is given {twice} by the code already; remove it from the section")
  parameters = _parameters(target)
  allowed = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
  for_config = [argument for argument in allowed if argument not in extra]
  unknown = sorted((set(arguments) | set(extra)) - set(allowed))
  if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
    raise ValueError(f"{name} takes no {unknown}; it takes {for_config}")
  required = [p.name for p in parameters if p.default is p.empty and p.name in allowed]
  missing = [argument for argument in required if argument not in {**arguments, **extra}]
  if missing:
    raise ValueError(f"{name} also needs {missing}; it takes {for_config}")
  for parameter in parameters:
    if parameter.name in arguments:
      _check_kind(name, parameter, arguments[parameter.name])
  for argument, (wrong, use) in _RANGES.items():
    value = arguments.get(argument)  # what is no number is for `_check_kind`
    if isinstance(value, numbers.Real) and wrong(value):
      raise ValueError(f"{name}: {argument}={value}: use {use}")


def _check_kind(name: str, parameter: inspect.Parameter, value: Any) -> None:
  """Raises ValueError unless a value is of the types of an annotation, where these are plain."""
  annotation = parameter.annotation
  union = isinstance(annotation, UnionType)  # what else has arguments is no choice between them
  kinds = typing.get_args(annotation) if union else (annotation,)
  if not set(kinds) <= _KINDS.keys():
    return
  fits = [kind for kind in kinds if isinstance(value, _KINDS[kind])]
  # To Python True is a number.
  if not fits or (isinstance(value, bool) and bool not in fits):
    what = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
    raise ValueError(f"{name}: {parameter.name}={reprlib.repr(value)}: use {what}")


def _parameters(target: Any) -> list[inspect.Parameter]:
  if not inspect.isclass(target) or target.__init__ is object.__init__:
    return list(inspect.signature(target).parameters.values())
  # The metaclass of nnx.Module hides the signature of the class, so ask the constructor itself.
  return list(inspect.signature(target.__init__).parameters.values())[1:]


def _modules(package: str) -> list[str]:
  try:
    paths = importlib.import_module(package).__path__
  except (ModuleNotFoundError, AttributeError):
    return []
  return sorted(module.name for module in pkgutil.iter_modules(paths))


def _callables(module: ModuleType) -> list[str]:
  own = lambda value: callable(value) and getattr(value, "__module__", None) == module.__name__
  return sorted(k for k, value in vars(module).items() if own(value) and not k.startswith("_"))
