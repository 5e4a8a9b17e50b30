"""Turns a legacy file of weights into one of arrays, and runs nothing of what is in it.

  python scripts/convert_pickle.py model.pth weights.npz
  python scripts/convert_pickle.py checkpoint.tar weights.safetensors --prefix=state_dict

It takes what `torch.save` writes (the zip, and the format before version 1.6) and plain pickles of
numpy arrays in dicts and lists; torch need not be installed. Names are joined by dots; values that
are no arrays (steps, options) are left out.

A pickle is a program: `pickle.load` and `torch.load` run whatever its author wrote. This is an
interpreter of its own for the few operations that plain arrays need. They make dicts, lists,
tuples, numbers, texts and descriptions of arrays, and nothing of Python's is ever called for them;
any other operation or name is an error that says which. Sizes are held against the bytes that are
there before memory is asked for.

What comes out is read by `affjax.models.weights`, and by `config.initialise`.
"""

import argparse
import codecs
import dataclasses
import functools
import io
import math
import mmap
import pickletools
import re
import reprlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import save_file

# What begins a file of torch's before version 1.6, and its version.
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Arrays may share their numbers; together they take so many bytes, or this many times the file's.
COPIED_BYTES, COPIED_TIMES = 2**28, 20
DEPTH, VALUES = 32, 1_000_000  # how deep dicts may be nested, and how much they may hold
OPERATIONS = 5_000_000  # of a pickle, at most: each may take some hundred bytes
STORAGES = {
  "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2",
  "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1",
  "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip


class Refused(ValueError):
  """What a file holds that is no plain array."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name that a pickle asks for; what it means here is in `FUNCTIONS` and `STORAGES`."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """Numbers of torch's that lie elsewhere in the file."""

  kind: str
  key: str
  count: int

  @property
  def dtype(self) -> np.dtype:
    """Of the numbers as they lie there; those of bfloat16 are taken for integers."""
    return np.dtype(STORAGES[self.kind])

  @property
  def size(self) -> int:
    """Bytes."""
    return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage, all in numbers rather than bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def __post_init__(self) -> None:
    _check_shape(self.shape)
    _check_shape(self.strides)
    _check_shape((self.offset,))
    if not isinstance(self.storage, Storage) or len(self.shape) != len(self.strides):
      raise Refused("a tensor without storage, or with other strides than it has axes")
    count = math.prod(self.shape)
    last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + self.offset
    if count and (last >= self.storage.count or count > self.storage.count):
      raise Refused(f"a tensor of shape {self.shape} in a storage of {self.storage.count} numbers")

  @property
  def size(self) -> int:
    """Bytes, once it is an array."""
    return math.prod(self.shape) * (4 if self._bfloat16 else self.storage.dtype.itemsize)

  @property
  def _bfloat16(self) -> bool:
    return self.storage.kind == "BFloat16Storage"

  def array(self, content: Callable[[Storage], bytes]) -> np.ndarray:
    """The numbers, given the bytes of its storage; bfloat16 as float32."""
    numbers = np.frombuffer(content(self.storage), self.storage.dtype)
    strides = [n * numbers.itemsize for n in self.strides]
    # An array without numbers may start anywhere.
    start = numbers[self.offset :] if math.prod(self.shape) else numbers
    array = np.lib.stride_tricks.as_strided(start, self.shape, strides, writeable=False)
    return (array.astype("<u4") << 16).view("<f4") if self._bfloat16 else np.array(array, order="C")


@dataclasses.dataclass
class Kind:
  """A dtype of numpy's: its code, and the order of bytes that the pickle adds later."""

  code: str
  order: str = "="

  def dtype(self) -> np.dtype:
    """The dtype; only of booleans, integers and floats."""
    if not isinstance(self.code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]", self.code):
      raise Refused(f"an array of {self.code!r}; only of numbers are allowed")
    return np.dtype(self.code).newbyteorder(self.order)

  def build(self, state: Any) -> None:
    """Takes (version, order, and what only other dtypes have)."""
    _, order, *others = state
    if order not in ("<", ">", "|", "=") or others[:3] != [None] * 3:
      raise Refused("an array of structures; only of numbers are allowed")
    self.order = order


@dataclasses.dataclass
class Array:
  """An array of numpy's: empty at first, as numpy writes them."""

  kind: Kind | None = None
  shape: tuple[int, ...] = ()
  fortran: bool = False
  content: bytes | bytearray | str = b""  # Python 2 wrote bytes as text

  @property
  def size(self) -> int:
    """Bytes."""
    return len(self.content)

  def build(self, state: Any) -> None:
    """Takes (version, shape, dtype, whether columns come first, bytes)."""
    _, self.shape, self.kind, self.fortran, self.content = state
    _check_shape(self.shape)
    if not isinstance(self.kind, Kind) or not isinstance(self.content, bytes | bytearray | str):
      raise Refused("an array of objects; only of numbers are allowed")
    if math.prod(self.shape) * self.kind.dtype().itemsize != len(self.content):
      raise Refused(f"an array of shape {self.shape} with {len(self.content)} bytes")

  def array(self, _: Callable[[Storage], bytes]) -> np.ndarray:
    """The numbers, in this machine's order of bytes."""
    if self.kind is None:
      raise Refused("an array that was never filled")
    dtype, content = self.kind.dtype(), self.content
    content = content.encode("latin-1") if isinstance(content, str) else content
    array = np.frombuffer(content, dtype).reshape(self.shape, order="FC"[not self.fortran])
    return np.array(array, dtype.newbyteorder("="), order="C")


def _check_shape(shape: Any) -> None:
  natural = lambda n: isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**62
  if not isinstance(shape, tuple) or len(shape) > 32 or not all(map(natural, shape)):
    raise Refused(f"sizes that are none: {reprlib.repr(shape)}")


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
  return tensor


def _ordered_dict(pairs: Any = ()) -> dict:
  return {_key(name): value for name, value in pairs}


def _reconstruct(kind: Any, *_: Any) -> Array:
  if kind != Global("numpy.ndarray"):
    raise Refused("an array of a type of its own")
  return Array()


def _filled(kind: Any, content: Any, shape: Any = (), order: Any = "C") -> Array:
  array = Array()
  array.build((1, shape, kind, order == "F", content))
  return array


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> Array:
  return _filled(kind, content, shape, order)


def _encode(text: Any, encoding: Any) -> Any:
  if encoding not in ("latin1", "latin-1"):
    raise Refused(f"text encoded by {reprlib.repr(encoding)}")
  return text  # encoded once it is known how large all arrays are


# All that a pickle may call.
FUNCTIONS: dict[str, Callable[..., Any]] = {
  "collections.OrderedDict": _ordered_dict,
  "torch._utils._rebuild_tensor": _rebuild_tensor,
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": _rebuild_parameter,
  "numpy.dtype": lambda code, *_: Kind(code),
  "_codecs.encode": _encode,
  "__builtin__.bytes": lambda: b"",
  **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
  **{f"numpy.{core}.multiarray.scalar": _filled for core in ("core", "_core")},
  **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
# Names that stand for themselves.
TYPES = {"numpy.ndarray", *(f"torch.{name}" for name in STORAGES)}

# Operations whose argument is a value.
VALUE = {
  "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
  "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
  "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLE = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
GET = {"GET", "BINGET", "LONG_BINGET"}


class Interpreter:
  """Reads one pickle.

  Attributes:
    storages: key -> those of torch's that it refers to.
  """

  def __init__(self) -> None:
    self.storages: dict[str, Storage] = {}
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}
    self._left = OPERATIONS

  def read(self, file: BinaryIO) -> Any:
    """Reads up to the end of the pickle, and not beyond.

    Raises:
      Refused: it does what plain arrays need not.
      EOFError: it has no end.
    """
    try:
      for name, argument in _operations(file):
        if name == "STOP":
          return self._stack.pop()
        self._spend(1)
        self._step(name, argument)
    except (LookupError, TypeError, OverflowError) as e:
      raise Refused(f"a damaged pickle ({e})") from e
    raise EOFError

  def _spend(self, count: int) -> None:
    self._left -= count
    if self._left < 0:
      raise Refused(f"more than {OPERATIONS:,} operations")

  def _step(self, name: str, argument: Any) -> None:
    stack = self._stack
    if name in VALUE:
      stack.append(argument)
    elif name in CONSTANT:
      stack.append(CONSTANT[name])
    elif name == "MARK":
      self._marks.append(len(stack))
    elif name in PUT:
      self._memo[len(self._memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in GET:
      stack.append(self._memo[argument])
    elif name in TUPLE:
      stack.append(tuple(self._pop(TUPLE[name])))
    elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
      self._fill(name)
    elif name not in ("PROTO", "FRAME"):
      stack.append(self._made(name, argument))

  def _made(self, name: str, argument: Any) -> Any:
    """What an operation puts on the stack."""
    if name == "TUPLE":
      return tuple(self._pop())
    if name in ("EMPTY_LIST", "LIST"):
      return [] if name == "EMPTY_LIST" else self._pop()
    if name in ("EMPTY_DICT", "DICT"):
      return {} if name == "EMPTY_DICT" else _pairs(self._pop())
    if name == "GLOBAL":
      return _global(*argument.split(" ", 1))
    if name == "STACK_GLOBAL":
      return _global(*self._pop(2))
    if name == "REDUCE":
      return self._call(*self._pop(2))
    if name == "BUILD":
      return _build(*self._pop(2))
    if name == "BINPERSID":
      return self._stored(self._stack.pop())
    raise Refused(f"the operation {name}, which plain arrays do not need")

  def _pop(self, count: int | None = None) -> list[Any]:
    """Takes so many values from the stack, or all since the last mark."""
    start = self._marks.pop() if count is None else len(self._stack) - count
    if start < 0:
      raise Refused("a damaged pickle")
    values = self._stack[start:]
    del self._stack[start:]
    return values

  def _fill(self, name: str) -> None:
    one = {"APPEND": 1, "SETITEM": 2}
    values = self._pop(one.get(name))
    target = self._stack[-1]
    if name.startswith("APPEND") and isinstance(target, list):
      target.extend(values)
    elif name.startswith("SETITEM") and isinstance(target, dict):
      target.update(_pairs(values))
    else:
      raise Refused("a damaged pickle")

  def _call(self, function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or function.name not in FUNCTIONS:
      raise Refused("a call of what is no function")
    if function.name == "collections.OrderedDict":
      # Of one list, many dicts could be made.
      self._spend(sum(map(len, _few(arguments))))
    return FUNCTIONS[function.name](*_few(arguments))

  def _stored(self, reference: Any) -> Storage:
    what, kind, key, _, count, *view = _few(reference)
    known = isinstance(kind, Global) and kind.name.removeprefix("torch.") in STORAGES
    if what != "storage" or not known or not isinstance(key, str) or view not in ([], [None]):
      raise Refused(f"a reference that is not known: {reprlib.repr(reference)}")
    _check_shape((count,))
    storage = Storage(kind.name.removeprefix("torch."), key, count)
    if self.storages.setdefault(key, storage) != storage:
      raise Refused(f"the storage {key!r} is of two kinds")
    return storage


def _operations(file: BinaryIO) -> Iterator[tuple[str, Any]]:
  """Yields name and argument of the operations of a pickle; none is carried out."""
  while code := file.read(1):
    operation = pickletools.code2op.get(code.decode("latin-1"))
    if operation is None:
      raise Refused(f"no pickle (byte {code[0]:#04x})")
    argument = None
    if operation.name == "STRING":  # of Python 2, whose texts are bytes
      escaped = pickletools.read_stringnl(file, decode=False)
      argument = codecs.escape_decode(escaped)[0].decode("latin-1")
    elif operation.arg is not None:
      argument = operation.arg.reader(file)
    yield operation.name, argument


def _global(module: Any, name: Any) -> Global:
  full = f"{module}.{name}"
  if full not in FUNCTIONS and full not in TYPES:
    raise Refused(f"{full[:80]!r}, which is no plain array")
  return Global(full)


def _few(values: Any) -> tuple:
  if not isinstance(values, tuple) or len(values) > 10:
    raise Refused("a damaged pickle")
  return values


def _build(target: Any, state: Any) -> Any:
  if isinstance(target, Kind | Array):
    target.build(_few(state))
  elif not isinstance(target, dict):  # of which torch's have attributes, `_metadata`
    raise Refused("a state of what has none")
  return target


def _pairs(values: list[Any]) -> dict:
  return {_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}


def _key(name: Any) -> str | int:
  if not isinstance(name, str | int):
    raise Refused(f"a dict whose key is no name: {reprlib.repr(name)}")
  return name


# Files.


def load(path: Path) -> tuple[dict[str, np.ndarray], int]:
  """Reads a legacy file of weights.

  Returns:
    Name -> array, and how many values were left out as they are no arrays.

  Raises:
    ValueError: the file cannot be read, or holds other things than plain values and arrays.
  """
  if not path.is_file():
    raise ValueError(f"{path}: no such file")
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _arrays(*_read_zip(archive, path.stat().st_size), path.stat().st_size)
    # Mapped: a text that says it has 2**62 bytes is then asked for as many as there are.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
      return _arrays(*_read_old(mapped), path.stat().st_size)
  except (LookupError, TypeError, AttributeError) as e:  # where a file has not what torch writes
    raise ValueError(f"{path}: not converted: it is damaged ({e})") from e
  except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as e:
    holds = "it holds " if isinstance(e, Refused) else ""
    # One line, whatever the names in the file are.
    why = "".join(c if c.isprintable() else "?" for c in str(e).partition("\n")[0])
    raise ValueError(f"{path}: not converted: {holds}{why or 'it ends too early'}") from e


def _read_zip(archive: zipfile.ZipFile, file_size: int) -> tuple[Any, Callable[[Storage], bytes]]:
  """The values of a zip of torch's, and what reads its storages."""
  members = {member.filename: member for member in archive.infolist()}
  roots = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
  if len(roots) != 1:
    raise Refused("no one data.pkl: it is no file of torch.save")

  def content(name: str, size: int | None = None) -> bytes:
    member = members[name]
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
      raise Refused(f"{name}, which is compressed or encrypted, as torch does not do")
    if max(member.file_size, member.compress_size) > file_size:
      raise Refused(f"{name}, which says that it is larger than the file")
    data = archive.read(member)
    if size is not None and len(data) != size:
      raise Refused(f"{name} of {len(data)} bytes, which should have {size}")
    return data

  if f"{roots[0]}byteorder" in members and content(f"{roots[0]}byteorder") != b"little":
    raise Refused("numbers in big-endian order")
  interpreter = Interpreter()
  values = interpreter.read(io.BytesIO(content(f"{roots[0]}data.pkl")))
  names = {key: f"{roots[0]}data/{key}" for key in interpreter.storages}
  if missing := [name for name in names.values() if name not in members]:
    raise Refused(f"no {missing[0]}")
  return values, functools.cache(lambda storage: content(names[storage.key], storage.size))


def _read_old(file: BinaryIO) -> tuple[Any, Callable[[Storage], bytes]]:
  """The values of a plain pickle, or of one of torch's that is followed by its storages."""
  values = Interpreter().read(file)
  if values != MAGIC:
    return values, _nowhere
  if Interpreter().read(file) != PROTOCOL:
    raise Refused("another version of torch's old format")
  if Interpreter().read(file).get("little_endian") is not True:
    raise Refused("numbers in big-endian order")
  interpreter = Interpreter()
  values = interpreter.read(file)
  contents = {}
  for key in Interpreter().read(file):
    storage = interpreter.storages[key]
    if int.from_bytes(file.read(8), "little") != storage.count:
      raise Refused(f"the storage {key!r} of another size than it says")
    contents[key] = file.read(storage.size)
    if len(contents[key]) != storage.size:
      raise Refused("less than it says")
  return values, lambda storage: contents[storage.key]


def _nowhere(storage: Storage) -> bytes:
  raise Refused(f"a reference to the storage {storage.key!r}, which is not in the file")


def _arrays(
  values: Any, content: Callable[[Storage], bytes], file_size: int
) -> tuple[dict[str, np.ndarray], int]:
  """All arrays by name, once it is known that they are not too large; and what else there is."""
  found: dict[str, Tensor | Array] = {}
  others = 0
  for path, value in _flat(values):
    if not isinstance(value, Tensor | Array):
      others += 1
      continue
    name = ".".join(path) or "array"
    if name in found or len(name) > 500 or not re.fullmatch(r"(?!/)[\w/:-]+(\.[\w/:-]+)*", name):
      raise Refused(f"the name {name[:60]!r}, twice or with other than letters, digits and . / : -")
    found[name] = value
  total = sum(value.size for value in found.values())
  if total > max(COPIED_BYTES, COPIED_TIMES * file_size):
    raise Refused(f"arrays of {total:,} bytes in a file of {file_size:,}")
  return {name: value.array(content) for name, value in found.items()}, others


def _flat(values: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
  """Yields the names on the way and the value of all that is in dicts and lists, in its order."""
  left = [iter([("", values)])]
  path = [""]
  for _ in range(VALUES):
    while left and (item := next(left[-1], None)) is None:
      left.pop()
      path.pop()
    if not left:
      return
    path[-1], value = str(item[0]), item[1]
    if not isinstance(value, dict | list | tuple):
      yield tuple(path[1:]), value
    elif len(left) > DEPTH:
      raise Refused("dicts that are nested too deeply")
    else:
      left.append(iter(value.items() if isinstance(value, dict) else enumerate(value)))
      path.append("")
  raise Refused(f"more than {VALUES:,} values")


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
  """Writes arrays by the ending of the file, whole or not at all."""
  partial = path.with_name(f".{path.name}")
  if path.suffix == ".safetensors":
    save_file(arrays, partial)
  else:
    with zipfile.ZipFile(partial, "w") as archive:
      for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
          np.lib.format.write_array(file, array, allow_pickle=False)
  partial.rename(path)


def main() -> None:
  """Reads, chooses, writes; prints what there is."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("file", type=Path, help="of torch.save, or a pickle of numpy arrays")
  parser.add_argument("output", type=Path, help="an .npz or .safetensors file")
  parser.add_argument("--prefix", default="", help="take only names below this one, without it")
  options = parser.parse_args()
  try:
    convert(options.file, options.output, options.prefix)
  except (ValueError, OSError) as e:
    sys.exit(f"error: {e}")


def convert(source: Path, output: Path, prefix: str = "") -> None:
  """Converts a file and prints its names and shapes.

  Raises:
    ValueError: another ending, a file that cannot be converted, or no array below the prefix.
  """
  if output.suffix not in (".npz", ".safetensors"):
    raise ValueError(f"{output}: use a name that ends in .npz or .safetensors")
  arrays, others = load(source)
  names = {n.removeprefix(f"{prefix}.") if prefix else n: n for n in arrays}
  chosen = {new: arrays[old] for new, old in names.items() if not prefix or new != old}
  if not chosen:
    there = ", ".join(list(arrays)[:5]) or "none"
    raise ValueError(f"{source}: no arrays{f' below {prefix!r}' if prefix else ''}; it has {there}")
  save(chosen, output)
  width = max(map(len, chosen))
  for name, array in chosen.items():
    print(f"{name:{width}}  {array.dtype!s:8} {' x '.join(map(str, array.shape))}")
  numbers = sum(array.size for array in chosen.values())
  left = f", {others} values that are no arrays left out" if others else ""
  print(f"{output}: {numbers:,} numbers in {len(chosen)} arrays{left}")


if __name__ == "__main__":
  main()
