"""A JAX function as an ONNX graph, one operation of JAX's after the other.

What a model is made of, at the level of `jax.lax`, is some forty operations whatever library it is
written in, and each is one or a few of ONNX's. That is all that is needed here, so the only package
besides JAX is `onnx`. (jax2onnx 0.17.1 was tried: it cannot be installed beside our Orbax, and puts
functions of its own in the place of others while it traces, of which `nnx.Dropout` takes no `rngs`
and `jnp.clip` led to a graph that ONNX Runtime refuses.)

What depends on no input is computed by JAX and written as a number. Sizes may be symbolic in one
name, such as the batch. A value that is broadcast stays small until something needs it large: most
of ONNX's operations broadcast by themselves.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from onnx import helper

# Old enough for what runs ONNX today, TensorRT and browsers among it.
OPSET, IR_VERSION = 17, 8
LARGEST = 2**31 - 2**24  # bytes of weights: a file that has them in it ends at 2 GiB

# Of JAX -> of ONNX: element by element, with the same inputs.
_SAME = {
  "abs": "Abs", "add": "Add", "and": "And", "div": "Div", "eq": "Equal", "exp": "Exp",
  "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
  "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
  "not": "Not", "or": "Or", "pow": "Pow", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum"}
_OF_SHAPES = ("broadcast_in_dim", "expand_dims", "reshape", "squeeze", "transpose")
_NOTHING = ("copy", "stop_gradient")
_CALLS = ("checkpoint", "custom_jvp_call", "custom_vjp_call", "jit", "remat2")

Size = Any  # int, or an expression of jax.export's
Shape = tuple[Size, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
  """What stands for an array of JAX's.

  Attributes:
    shape: of what there is: 1 where it is still to be broadcast.
    dtype: of it.
    name: in the graph; empty: it is a constant.
    array: of a constant.
    taps: what it is as a sum of shifted products, if it is one.
  """

  shape: Shape
  dtype: np.dtype
  name: str = ""
  array: np.ndarray | None = None
  taps: "Taps | None" = None

  @classmethod
  def constant(cls, array: Any) -> "Value":
    """A value that depends on no input."""
    array = np.asarray(array)
    return cls(array.shape, array.dtype, array=array)


@dataclasses.dataclass(frozen=True, eq=False)
class Taps:
  """Windows of a map, each times a number for every channel, summed up.

  So are convolutions of each channel alone written in `affjax.models`, because JAX is fastest so on
  a CPU; what runs ONNX is fastest with one node.

  Attributes:
    source: [batch, rows, columns, channels], with its padding.
    steps: from one place of a window to the next, rows and columns.
    size: of the windows, rows and columns.
    numbers: row and column where a window starts -> [channels] or [1].
  """

  source: Value
  steps: tuple[int, int]
  size: tuple[int, int]
  numbers: Mapping[tuple[int, int], np.ndarray]

  @classmethod
  def of_window(
    cls, source: Value, parts: Mapping[int, tuple[int, int, int]], shape: Shape
  ) -> "Taps | None":
    """A window alone, of axis -> start, stop, step; None: of other axes."""
    if len(shape) != 4 or not set(parts) <= {1, 2}:
      return None
    (row, _, down), (column, _, right) = (parts.get(axis, (0, None, 1)) for axis in (1, 2))
    one = {(row, column): np.ones(1, source.dtype)}
    return cls(source, (down, right), tuple(shape[1:3]), one)

  def times(self, factor: Value) -> "Taps | None":
    """All windows times a constant for every channel; None: it is something else."""
    if factor.name or math.prod(factor.shape[:-1]) != 1:
      return None
    numbers = {place: n * factor.array.reshape(-1) for place, n in self.numbers.items()}
    return dataclasses.replace(self, numbers=numbers)

  def plus(self, other: "Taps | None") -> "Taps | None":
    """With the windows of another sum; None: it has none, or of something else."""
    known = (self.source, self.steps, self.size)
    if other is None or (other.source, other.steps, other.size) != known:
      return None
    if self.numbers.keys() & other.numbers.keys():
      return None
    return dataclasses.replace(self, numbers={**self.numbers, **other.numbers})

  @property
  def side(self) -> int:
    """Rows and columns of a kernel that has a number for each window; 0: there is none."""
    side = math.isqrt(len(self.numbers))
    square = set(itertools.product(range(side), repeat=2))
    return side if side > 1 and set(self.numbers) == square else 0


def convert(
  function: Callable[..., Mapping[str, jax.Array]], inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> onnx.ModelProto:
  """Converts a function with all that it refers to.

  Args:
    function: of arrays, in the order of `inputs`; gives name -> array.
    inputs: name -> shape and type. The first axis of the first input may be one symbol of
      `jax.export.symbolic_shape`, of which multiples may be anywhere.

  Returns:
    A model with inputs and outputs of these names, of opset `OPSET`.

  Raises:
    ValueError: the function does what has no counterpart here, which it names; or there is too much
      of what it refers to.
  """
  closed, out = jax.make_jaxpr(function, return_shape=True)(*inputs.values())
  graph = _Graph(batch=next(iter(inputs.values())).shape[0], source=next(iter(inputs)))
  given = [Value(x.shape, np.dtype(x.dtype), name) for name, x in inputs.items()]
  found = graph.run(closed.jaxpr, closed.consts, given)
  names = sorted(out)  # as JAX orders a dict
  for name, value, variable in zip(names, found, closed.jaxpr.outvars, strict=True):
    graph.node("Identity", [graph.full(value, variable.aval)], [name])
  nodes = graph.needed(names)
  made = helper.make_graph(
    *(nodes, "affjax"),
    [_info(value.name, value.shape, value.dtype) for value in given],
    [_info(name, out[name].shape, out[name].dtype) for name in names],
    initializer=graph.initializers(nodes),
  )
  opsets = [helper.make_opsetid("", OPSET)]
  model = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
  try:
    onnx.checker.check_model(model, full_check=True)
  except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
    raise ValueError(f"what it becomes is no valid ONNX: {' '.join(str(e).split())[:200]}") from e
  return model


def _info(name: str, shape: Shape, dtype: Any) -> onnx.ValueInfoProto:
  sizes = [size if isinstance(size, int) else str(size) for size in shape]
  return helper.make_tensor_value_info(name, _type(dtype), sizes)


def _type(dtype: Any) -> int:
  return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class _Graph:
  """Nodes in their order, and what they refer to.

  A graph inside another, the body of a loop, shares its names and constants.
  """

  def __init__(self, batch: Size, source: str, outside: "_Graph | None" = None) -> None:
    self._batch, self._source = batch, source
    self.nodes: list[onnx.NodeProto] = []
    self._numbers = outside._numbers if outside else itertools.count()
    # By identity; the arrays are kept, so that no other gets their identity.
    self._constants: dict[int, tuple[str, np.ndarray]] = outside._constants if outside else {}

  def inside(self) -> "_Graph":
    """An empty graph for the body of a loop."""
    return _Graph(self._batch, self._source, self)

  # Nodes.

  def fresh(self, what: str) -> str:
    """A name that nothing has."""
    return f"{what.lower()}/{next(self._numbers)}"

  def node(self, op: str, inputs: Sequence[Any], outputs: Sequence[str], **attributes: Any) -> None:
    """Adds a node; inputs are values or arrays."""
    self.nodes.append(helper.make_node(op, list(map(self.name, inputs)), outputs, **attributes))

  def emit(
    self, op: str, *inputs: Any, shape: Shape, dtype: Any = None, **attributes: Any
  ) -> Value:
    """Adds a node of one output; its type is the first input's where none is given."""
    value = Value(
      tuple(shape), np.dtype(inputs[0].dtype if dtype is None else dtype), self.fresh(op)
    )
    self.node(op, inputs, [value.name], **attributes)
    return value

  def name(self, value: Value | np.ndarray) -> str:
    """The name of a value; a constant becomes one of the graph's."""
    if isinstance(value, Value) and value.name:
      return value.name
    array = value.array if isinstance(value, Value) else value
    if id(array) not in self._constants:
      self._constants[id(array)] = self.fresh("constant"), array
    return self._constants[id(array)][0]

  def needed(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that these outputs depend on."""
    names, kept = set(outputs), []
    for node in reversed(self.nodes):
      if names & set(node.output):
        kept.append(node)
        names |= _used(node)
    return kept[::-1]

  def initializers(self, nodes: Sequence[onnx.NodeProto]) -> list[onnx.TensorProto]:
    """The constants that these nodes refer to."""
    names = set().union(*map(_used, nodes))
    found = {name: array for name, array in self._constants.values() if name in names}
    size = sum(array.nbytes for array in found.values())
    if size > LARGEST:
      raise ValueError(f"{size:,} bytes of weights, a file of ONNX's may have {LARGEST:,}")
    return [onnx.numpy_helper.from_array(array, name) for name, array in found.items()]

  # Shapes.

  def full(self, value: Value, aval: Any) -> Value:
    """The value in the shape that it has in JAX."""
    if value.shape == aval.shape:
      return value
    if not value.name and _known(aval.shape):
      return Value.constant(np.broadcast_to(value.array, aval.shape))
    sizes = [self._size(size) for size in aval.shape]
    sizes = self.emit("Concat", *sizes, shape=(len(sizes),), dtype=np.int64, axis=0)
    return self.emit("Expand", value, sizes, shape=aval.shape)

  def _size(self, size: Size) -> Value | np.ndarray:
    """A size as an array of one number, which may be known only when the graph runs."""
    if isinstance(size, int):
      return np.array([size])
    times, rest = divmod(size, self._batch)
    if not isinstance(times, int) or rest != 0:
      raise ValueError(f"an array of size {size}: sizes may be multiples of the batch")
    source = Value((self._batch,), np.dtype(np.int64), self._source)
    batch = self.emit("Shape", source, shape=(1,), start=0, end=1)
    return batch if times == 1 else self.emit("Mul", batch, np.array([times]), shape=(1,))

  def reshape(self, value: Value, shape: Shape) -> Value:
    """The value in another shape of as many numbers."""
    if value.shape == tuple(shape):
      return value
    if not value.name:
      return Value.constant(value.array.reshape(shape))
    sizes = np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)
    return self.emit("Reshape", value, sizes, shape=shape)

  def transpose(self, value: Value, order: Sequence[int]) -> Value:
    """The value with its axes in another order."""
    order = tuple(map(int, order))
    if order == tuple(range(len(order))):
      return value
    if not value.name:
      return Value.constant(value.array.transpose(order))
    return self.emit("Transpose", value, shape=[value.shape[i] for i in order], perm=order)

  def _by_channel(self, taps: Taps, shape: Shape) -> Value:
    """A sum of windows as one convolution of each channel alone."""
    batch, _, _, channels = shape
    numbers = [np.broadcast_to(taps.numbers[place], channels) for place in sorted(taps.numbers)]
    kernel = np.stack(numbers, axis=1).reshape(channels, 1, taps.side, taps.side)
    ends = [(n - 1) * step + taps.side for n, step in zip(taps.size, taps.steps, strict=True)]
    whole = {axis: (0, end, 1) for axis, end in zip((1, 2), ends, strict=True)}
    source = _cut(self, taps.source, whole, (batch, *ends, channels))
    found = self.emit(
      *("Conv", self.transpose(source, (0, 3, 1, 2)), kernel),
      shape=(batch, channels, *taps.size),
      strides=taps.steps,
      group=channels,
    )
    return dataclasses.replace(self.transpose(found, (0, 2, 3, 1)), taps=taps)

  # Programs.

  def run(self, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Adds what a program of JAX's does; gives its outputs."""
    known: dict[Any, Value] = {}
    known |= dict(zip(jaxpr.constvars, map(Value.constant, constants), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    literal = lambda x: Value.constant(np.asarray(x.val, x.aval.dtype))
    read = lambda x: literal(x) if hasattr(x, "val") else known[x]
    for equation in jaxpr.eqns:
      found = self._apply(equation, [read(x) for x in equation.invars])
      known |= dict(zip(equation.outvars, found, strict=True))
    return [read(x) for x in jaxpr.outvars]

  def _apply(self, equation: Any, inputs: list[Value]) -> Sequence[Value]:
    """Adds what one operation does, or computes it where it depends on no input."""
    name = equation.primitive.name
    if name in _CALLS:
      inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
      return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if name in _NOTHING:
      return inputs
    if not any(value.name for value in inputs) and (found := self._fold(equation, inputs)):
      return found
    if name in _SAME or name in _ELEMENTWISE:
      return [self._elementwise(equation, inputs)]
    if name not in _OTHERS:
      raise ValueError(f"JAX's {name} has no counterpart in affjax/onnx_graph.py")
    return _OTHERS[name](self, equation, inputs)

  def _fold(self, equation: Any, inputs: list[Value]) -> list[Value] | None:
    """What comes of constants, as constants; None: its size is not known."""
    name, outputs = equation.primitive.name, equation.outvars
    arrays = [value.array for value in inputs]
    if name in _SAME or name in _ELEMENTWISE:
      arrays = np.broadcast_arrays(*arrays)
    elif name in _OF_SHAPES or not all(_known(x.aval.shape) for x in outputs):
      return None
    else:
      pairs = zip(inputs, equation.invars, strict=True)
      arrays = [self.full(value, x.aval).array for value, x in pairs]
    found = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    return [Value.constant(x) for x in (found if equation.primitive.multiple_results else [found])]

  def _elementwise(self, equation: Any, inputs: list[Value]) -> Value:
    name, dtype = equation.primitive.name, equation.outvars[0].aval.dtype
    shape = _broadcast(*(value.shape for value in inputs))
    if name in _SAME:
      taps = _taps(name, *inputs) if name in ("add", "mul") else None
      if taps and taps.side:
        return self._by_channel(taps, shape)
      value = self.emit(_SAME[name], *inputs, shape=shape, dtype=dtype)
      return dataclasses.replace(value, taps=taps)
    emit = lambda op, *values, dtype=dtype, **attributes: self.emit(
      op, *values, shape=shape, dtype=dtype, **attributes
    )
    return _ELEMENTWISE[name](emit, equation.params, *inputs)


def _taps(name: str, x: Value, y: Value) -> Taps | None:
  """What comes of a sum ("add") or product of two values as a sum of windows, if it is one."""
  x, y = (x, y) if x.taps else (y, x)
  if not x.taps:
    return None
  nothing = not (y.name or y.array.any())
  return x.taps.times(y) if name == "mul" else x.taps if nothing else x.taps.plus(y.taps)


def _known(shape: Shape) -> bool:
  return all(isinstance(size, int) for size in shape)


def _used(node: onnx.NodeProto) -> set[str]:
  """Names that a node refers to, those inside its bodies included."""
  bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
  return set(node.input).union(*(_used(inner) for body in bodies for inner in body.node))


def _broadcast(*shapes: Shape) -> Shape:
  """The shape of what comes of arrays of these shapes, element by element."""
  columns = itertools.zip_longest(*(shape[::-1] for shape in shapes), fillvalue=1)
  return tuple(next((size for size in column if size != 1), 1) for column in columns)[::-1]


# Element by element, where it takes more than a node with the same inputs: (emit, parameters,
# inputs) -> value.


def _one(x: Value, number: float = 1) -> np.ndarray:
  return np.array(number, x.dtype)


_ELEMENTWISE: dict[str, Callable[..., Value]] = {
  "clamp": lambda emit, _, low, x, high: emit("Min", emit("Max", x, low), high),
  "convert_element_type": lambda emit, given, x: emit("Cast", x, to=_type(given["new_dtype"])),
  "erfc": lambda emit, _, x: emit("Sub", _one(x), emit("Erf", x)),
  "integer_pow": lambda emit, given, x: emit("Pow", x, _one(x, given["y"])),
  "ne": lambda emit, _, x, y: emit("Not", emit("Equal", x, y)),
  "rsqrt": lambda emit, _, x: emit("Reciprocal", emit("Sqrt", x)),
  "select_n": lambda emit, _, which, no, yes: emit("Where", which, yes, no),
  "square": lambda emit, _, x: emit("Mul", x, x),
}


# Other operations: (graph, equation, inputs) -> outputs.


def _same_array(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  """Whole arrays of an operation, as they are in JAX."""
  return [graph.full(x, variable.aval) for x, variable in zip(inputs, equation.invars, strict=True)]


def _broadcast_in_dim(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  given, x = equation.params, inputs[0]
  shape = [1] * len(given["shape"])
  for axis, size in zip(given["broadcast_dimensions"], x.shape, strict=True):
    shape[axis] = size
  return [graph.reshape(x, tuple(shape))]


def _reshape(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  (x,) = _same_array(graph, equation, inputs)
  return [graph.reshape(x, equation.outvars[0].aval.shape)]


def _transpose(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  return [graph.transpose(inputs[0], equation.params["permutation"])]


def _concatenate(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  axis, shape = equation.params["dimension"], equation.outvars[0].aval.shape
  return [graph.emit("Concat", *_same_array(graph, equation, inputs), shape=shape, axis=axis)]


def _split(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  (x,), given = _same_array(graph, equation, inputs), equation.params
  parts = [Value(v.aval.shape, x.dtype, graph.fresh("split")) for v in equation.outvars]
  sizes = np.array([int(size) for size in given["sizes"]])
  graph.node("Split", [x, sizes], [part.name for part in parts], axis=given["axis"])
  return parts


def _slice(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  (x,), given = _same_array(graph, equation, inputs), equation.params
  steps = given["strides"] or [1] * len(x.shape)
  parts = zip(given["start_indices"], given["limit_indices"], steps, strict=True)
  return [_cut(graph, x, dict(enumerate(parts)), equation.outvars[0].aval.shape)]


def _cut(graph: _Graph, x: Value, parts: Mapping[int, tuple[Any, Any, Any]], shape: Shape) -> Value:
  """Axis -> start, stop, step; axes that are taken whole are left out."""
  parts = {axis: part for axis, part in parts.items() if part != (0, x.shape[axis], 1)}
  if not parts:
    return x
  starts, stops, steps = (np.array(numbers) for numbers in zip(*parts.values(), strict=True))
  value = graph.emit("Slice", x, starts, stops, np.array(list(parts)), steps, shape=shape)
  return dataclasses.replace(value, taps=Taps.of_window(x, parts, shape))


def _gather(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  """`x[:, 3]`, `x[:, 2:9]`, `x[:, ::2, 1::2]`: with a symbolic batch, JAX gathers them."""
  (x, where), given = _same_array(graph, equation, inputs), equation.params
  numbers, sizes = given["dimension_numbers"], list(given["slice_sizes"])
  axes, dropped = numbers.start_index_map, numbers.collapsed_slice_dims
  if where.name or numbers.operand_batching_dims:
    raise ValueError("JAX's gather by what depends on an input has no counterpart here")
  parts, grid = {}, where.array.shape[:-1]
  if grid and (len(grid) != len(axes) or not set(axes) <= set(dropped)):
    raise ValueError("JAX's gather of other than regular parts has no counterpart here")
  for number, axis in enumerate(axes):
    first, count, step = _line(where.array[..., number], number) if grid else (
      int(where.array[number]), sizes[axis], 1
    )  # fmt: skip
    sizes[axis], parts[axis] = count, (first, first + (count - 1) * step + 1, step)
  if any(size != x.shape[axis] for axis, size in enumerate(sizes) if axis not in axes):
    raise ValueError("JAX's gather of the first few along an axis has no counterpart here")
  cut = _cut(graph, x, parts, tuple(sizes))
  if not grid:
    return [graph.reshape(cut, equation.outvars[0].aval.shape)]
  windows, places = iter(sorted(set(range(len(sizes))) - set(dropped))), iter(axes)
  order = [next(windows if i in numbers.offset_dims else places) for i in range(len(sizes))]
  return [graph.transpose(cut, order)]


def _line(places: np.ndarray, axis: int) -> tuple[int, int, int]:
  """First, number and step of places that grow evenly along an axis of a grid, and no other."""
  line = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)
  step = int(line[1, 0] - line[0, 0]) if len(line) > 1 else 1
  even = line[0, 0] + step * np.arange(len(line))
  if step < 1 or (line != even[:, None]).any():
    raise ValueError("JAX's gather of other than regular parts has no counterpart here")
  return int(line[0, 0]), len(line), step


def _pad(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  x, value = _same_array(graph, equation, inputs)
  before, after, between = zip(*equation.params["padding_config"], strict=True)
  if any(between) or min(*before, *after) < 0:
    raise ValueError("JAX's pad between numbers, or by less than none, has no counterpart here")
  pads = np.array([*before, *after], np.int64)
  return [graph.emit("Pad", x, pads, value, shape=equation.outvars[0].aval.shape)]


def _reduce(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  (x,), name = _same_array(graph, equation, inputs), equation.primitive.name
  axes, shape = list(equation.params["axes"]), equation.outvars[0].aval.shape
  if name == "reduce_sum":  # the first of them to take its axes so
    return [graph.emit("ReduceSum", x, np.array(axes), shape=shape, keepdims=0)]
  return [graph.emit(_REDUCTIONS[name], x, shape=shape, axes=axes, keepdims=0)]


def _dot_general(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  x, y = _same_array(graph, equation, inputs)
  (x_in, y_in), (x_batch, y_batch) = equation.params["dimension_numbers"]
  shape = equation.outvars[0].aval.shape
  if not x_batch and len(y.shape) == 2 and (x_in, y_in) == ((len(x.shape) - 1,), (0,)):
    return [graph.emit("MatMul", x, y, shape=shape)]
  letters = iter("abcdefghijklmnopqrstuvwxyz")
  of_x, of_y = ["?"] * len(x.shape), ["?"] * len(y.shape)
  for i, j in (*zip(x_batch, y_batch, strict=True), *zip(x_in, y_in, strict=True)):
    of_x[i] = of_y[j] = next(letters)
  out = [of_x[i] for i in x_batch]
  for of in (of_x, of_y):
    for i in (i for i, letter in enumerate(of) if letter == "?"):
      of[i] = next(letters)
      out.append(of[i])
  written = f"{''.join(of_x)},{''.join(of_y)}->{''.join(out)}"
  return [graph.emit("Einsum", x, y, shape=shape, equation=written)]


def _convolution(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  (x, kernel), given = _same_array(graph, equation, inputs), equation.params
  if set(given["lhs_dilation"]) != {1} or given["batch_group_count"] != 1:
    raise ValueError("JAX's transposed convolution has no counterpart here")
  of_x, of_kernel, of_out = given["dimension_numbers"]  # where batch, channels, rows, ... are
  shape = equation.outvars[0].aval.shape
  found = graph.emit(
    *("Conv", graph.transpose(x, of_x), graph.transpose(kernel, of_kernel)),
    shape=[shape[i] for i in of_out],
    strides=given["window_strides"],
    pads=[side[end] for end in (0, 1) for side in given["padding"]],
    dilations=given["rhs_dilation"],
    group=given["feature_group_count"],
  )
  return [graph.transpose(found, np.argsort(of_out))]


def _pool(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  """Maxima or sums over windows of rows and columns."""
  (x,), given = _same_array(graph, equation, inputs), equation.params
  size, steps, pads = (given[name] for name in ("window_dimensions", "window_strides", "padding"))
  spread = set(given["base_dilation"]) | set(given["window_dilation"])
  if len(size) != 4 or (size[0], size[3]) != (1, 1) or spread != {1}:
    raise ValueError("JAX's windows of other than rows and columns have no counterpart here")
  batch, rows, columns, channels = equation.outvars[0].aval.shape
  options = dict(
    shape=(batch, channels, rows, columns),
    kernel_shape=size[1:3],
    strides=steps[1:3],
    pads=[side[end] for end in (0, 1) for side in pads[1:3]],
  )
  x = graph.transpose(x, (0, 3, 1, 2))
  if equation.primitive.name == "reduce_window_max":
    found = graph.emit("MaxPool", x, **options)
  else:
    means = graph.emit("AveragePool", x, **options, count_include_pad=1)
    found = graph.emit("Mul", means, _one(means, size[1] * size[2]), shape=options["shape"])
  return [graph.transpose(found, (0, 2, 3, 1))]


def _scan(graph: _Graph, equation: Any, inputs: list[Value]) -> list[Value]:
  given, inputs = equation.params, _same_array(graph, equation, inputs)
  constants, carried = given["num_consts"], given["num_consts"] + given["num_carry"]
  if len(inputs) == carried:
    raise ValueError("JAX's scan over nothing has no counterpart here")
  body, inner = graph.inside(), given["jaxpr"]
  named = lambda v, what: Value(v.aval.shape, np.dtype(v.aval.dtype), graph.fresh(what))
  taken = [named(v, "scan/in") for v in inner.jaxpr.invars[constants:]]
  found = body.run(inner.jaxpr, inner.consts, [*inputs[:constants], *taken])
  left = [named(v, "scan/out") for v in inner.jaxpr.outvars]
  for value, out, variable in zip(found, left, inner.jaxpr.outvars, strict=True):
    body.node("Identity", [body.full(value, variable.aval)], [out.name])
  info = lambda values: [_info(x.name, x.shape, x.dtype) for x in values]
  made = helper.make_graph(body.needed([x.name for x in left]), "body", info(taken), info(left))
  outputs = [Value(v.aval.shape, np.dtype(v.aval.dtype), graph.fresh("scan"))
             for v in equation.outvars]  # fmt: skip
  over, gives = len(inputs) - carried, len(outputs) - given["num_carry"]
  backwards = {"scan_input_directions": [1] * over, "scan_output_directions": [1] * gives}
  directions = {name: ones for name, ones in backwards.items() if ones and given["reverse"]}
  names = [x.name for x in outputs]
  graph.node("Scan", inputs[constants:], names, body=made, num_scan_inputs=over, **directions)
  return outputs


_OTHERS: dict[str, Callable[[_Graph, Any, list[Value]], list[Value]]] = {
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  "expand_dims": _reshape,
  "gather": _gather,
  "pad": _pad,
  "reduce_window_max": _pool,
  "reduce_window_sum": _pool,
  "reshape": _reshape,
  "scan": _scan,
  "slice": _slice,
  "split": _split,
  "squeeze": _reshape,
  "transpose": _transpose,
  **dict.fromkeys(_REDUCTIONS, _reduce),
}
