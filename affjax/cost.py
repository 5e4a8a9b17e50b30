"""What a program costs, read off it before it runs: FLOPs, memory, messages between devices."""

import collections
import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

COLLECTIVES = (
  "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip


def flops(function: Callable[..., Any], *arguments: Any) -> float:
  """Floating-point operations of a function's matrix products and convolutions.

  A multiplication and an addition count as two, a loop's body as often as it runs (XLA's own count
  takes it once), the longest branch of a conditional, and what rematerialisation computes again.
  Element-wise work, a few per cent, is left out: this is what FLOP/s are usually divided by.

  Args:
    function: of arrays.
    *arguments: trees of arrays or of their shapes. They say nothing of devices: it is the sum.
  """
  return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


class MemoryShort(ValueError):
  """Something did not fit into memory."""


@contextlib.contextmanager
def memory_for(what: str, remedies: str) -> Iterator[None]:
  """Says of what runs out of memory in the block, on a device or the host, what would help.

  Args:
    what: the block is, such as "a training step".
    remedies: fields of the config to change, and how.

  Raises:
    MemoryShort: in place of XLA's error, or NumPy's.
  """
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as e:
    if isinstance(e, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(e):
      raise
    reason = (str(e).splitlines() or ["no more"])[0][:200]
    raise MemoryShort(f"out of memory in {what} ({reason}): {remedies}") from e


# What a device can do by its maker's data sheet: dense bfloat16 products, TFLOP/s. By a part of its
# name, the more special first. TPU v2 and v3 are a core, half a chip.
_SHEET = {
  "B200": 2250.0,
  "H200": 989.0,
  "H100 PCIe": 756.0,
  "H100": 989.0,
  "A100": 312.0,
  "L40S": 362.0,
  "L4": 121.0,
  "TPU v6": 918.0,
  "TPU v5 lite": 197.0,
  "TPU v5e": 197.0,
  "TPU v5": 459.0,
  "TPU v4": 275.0,
  "TPU v3": 61.5,
  "TPU v2": 22.5,
}


@dataclasses.dataclass(frozen=True)
class Peak:
  """What devices could do at most.

  Attributes:
    teraflops: of all of them together.
    source: where the number is from.
  """

  teraflops: float
  source: str


def peak(devices: Sequence[jax.Device], dtype: Any) -> Peak:
  """The denominator of MFU: the data sheet's, or where that is not known what is measured.

  Args:
    devices: all of one kind.
    dtype: of the products.
  """
  kind, number = devices[0].device_kind, len(devices)
  sheet = next((value for name, value in _SHEET.items() if name in kind), None)
  if sheet and jnp.dtype(dtype) == jnp.bfloat16:
    return Peak(number * sheet, f"data sheet, {number} x {sheet:g} TFLOP/s")
  if devices[0].platform == "cpu":
    number = len({device.process_index for device in devices})  # fake ones are one machine
  each = measured_peak(dtype)
  return Peak(number * each, f"measured, {number} x {each:.3g} TFLOP/s")


def measured_peak(dtype: Any, repeats: int = 5) -> float:
  """TFLOP/s of the product of two large square matrices on one device, the best of `repeats`."""
  device = jax.local_devices()[0]
  size = 1024 if device.platform == "cpu" else 8192
  x = jax.device_put(jnp.ones((size, size), dtype), device)
  product = jax.jit(jnp.matmul)
  product(x, x).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best / 1e12


def _flops(jaxpr: core.Jaxpr) -> float:
  total = 0.0
  for eqn in jaxpr.eqns:
    shapes = [v.aval.shape for v in eqn.invars if hasattr(v.aval, "shape")]
    kind, params = eqn.primitive.name, eqn.params
    if kind == "dot_general":
      summed = params["dimension_numbers"][0][0]
      total += 2 * eqn.outvars[0].aval.size * math.prod(shapes[0][i] for i in summed)
    elif kind == "conv_general_dilated":
      kernel, out = shapes[1], params["dimension_numbers"].rhs_spec[0]
      each = math.prod(kernel) / kernel[out] / math.prod(params["lhs_dilation"])  # those are zeros
      total += 2 * eqn.outvars[0].aval.size * each
    elif kind == "cond":
      total += max(map(_flops, _inner(params)))
    else:
      total += sum(map(_flops, _inner(params))) * params.get("length", 1)
  return total


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  for value in params.values():
    for one in value if isinstance(value, list | tuple) else [value]:
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one


@dataclasses.dataclass(frozen=True)
class Collective:
  """Messages of one kind.

  Attributes:
    count: how many in a run of the program; in a loop that XLA knows the length of, each time.
    bytes: a device's part of them together; of each the larger of what goes in and comes out.
  """

  count: int = 0
  bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Cost:
  """What XLA says of a compiled program, for each device. Sizes are in bytes.

  Attributes:
    flops: element-wise work and all; of a loop one turn.
    accessed: read and written in memory; likewise.
    arguments: what goes in.
    outputs: what comes out and takes no argument's place (is not donated).
    temporaries: what the program allocates for itself.
    code: the program.
    cycles: of all its operations one after the other, as a TPU's compiler estimates them; 0: it
      says nothing.
    collectives: kind -> messages.
  """

  flops: float
  accessed: float
  arguments: int
  outputs: int
  temporaries: int
  code: int
  cycles: int
  collectives: dict[str, Collective]

  @property
  def memory(self) -> int:
    """What a device must have, in bytes."""
    return self.arguments + self.outputs + self.temporaries + self.code


def of(compiled: jax.stages.Compiled) -> Cost:
  """Asks XLA's analyses of a compiled program, and counts the collectives in its text."""
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
  text = compiled.as_text()
  return Cost(
    flops=cost.get("flops", math.nan),
    accessed=cost.get("bytes accessed", math.nan),
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    cycles=sum(map(int, _CYCLES.findall(text))),
    collectives=collectives(text),
  )


_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# "  %name = TYPE operation(OPERANDS), ATTRIBUTES"; the type of several results is in parentheses.
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|_computations?)=(\{[^}]*\}|[%\w.-]+)")


def collectives(hlo: str) -> dict[str, Collective]:
  """Counts what is sent between devices in a compiled program's text.

  A message that is started and awaited apart counts once, and so does one that a TPU's program
  names in several fusions, between which it goes on (they share its channel).
  """
  bodies, entry = _computations(hlo)
  times: dict[str, int] = collections.defaultdict(int)
  _count_calls(bodies, entry, 1, times)
  found: dict[tuple[str, str], Collective] = {}
  for name, body in bodies.items():
    sizes = {i.name: _size(i.type) for i in body}
    for i in body:
      done = i.kind.endswith("-done")
      kind = i.kind.removesuffix("-done")
      if kind not in COLLECTIVES or not times[name]:
        continue
      inside = 0 if done else sum(sizes.get(o, 0) for o in re.findall(r"%([\w.-]+)", i.operands))
      channel = re.search(r"channel_id=(\d+)", i.rest)
      one = Collective(times[name], times[name] * max(inside, sizes[i.name]))
      key = (kind, channel[1] if channel and not done else f"{name}/{i.name}")
      found[key] = max(found.get(key, Collective()), one, key=lambda c: (c.count, c.bytes))
  return {
    kind: Collective(sum(c.count for c in these), sum(c.bytes for c in these))
    for kind in COLLECTIVES
    if (these := [c for (k, _), c in found.items() if k == kind])
  }


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  type: str
  kind: str
  operands: str
  rest: str


def _computations(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Computation -> its instructions, and which is the entry."""
  bodies: dict[str, list[_Instruction]] = {}
  entry = current = ""
  for line in hlo.splitlines():
    if match := _COMPUTATION.match(line):
      current = match[2]
      bodies[current] = []
      entry = current if match[1] else entry
    elif current and (match := _INSTRUCTION.match(line)):
      bodies[current].append(_Instruction(*match.groups()))
  return bodies, entry


def _count_calls(
  bodies: dict[str, list[_Instruction]], name: str, turns: int, times: dict[str, int]
) -> None:
  """Adds how often each computation runs, when `name` runs so often."""
  times[name] += turns
  for i in bodies.get(name, ()):
    if i.kind.endswith(("-done", "-update")):
      continue  # what was started is awaited, not called again
    length = re.search(r'known_trip_count":\{"n":"(\d+)', i.rest)
    inner = turns * (int(length[1]) if length else 1)
    for names in _CALLED.findall(i.rest):
      for called in re.findall(r"[\w.-]+", names):
        if called in bodies:
          _count_calls(bodies, called, inner, times)


def _size(type_: str) -> int:
  """Bytes of a type such as "(f32[8,3]{1,0}, bf16[4])"."""
  total = 0
  for dtype, shape in re.findall(r"([a-z]\w*)\[([\d,]*)\]", type_):
    bits = 8 if dtype == "pred" else int((re.search(r"\d+", dtype) or ["0"])[0])
    total += math.prod(map(int, filter(None, shape.split(",")))) * bits // 8
  return total
