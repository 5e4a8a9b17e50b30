"""FLOPs against the formulas of textbooks, messages against programs that say what they send."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import debug_config
from jax.sharding import NamedSharding, PartitionSpec

from affjax import cost, experiment, procedures, sharding


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


PRODUCT = 2 * 5 * 7 * 11  # of [5, 7] and [7, 11]


@pytest.mark.parametrize(
  ("function", "shapes", "flops"),
  [
    (jnp.matmul, (shape(5, 7), shape(7, 11)), PRODUCT),
    (jnp.matmul, (shape(3, 5, 7), shape(3, 7, 11)), 3 * PRODUCT),
    (lambda x, w: jnp.tanh(x @ w) + 1, (shape(5, 7), shape(7, 11)), PRODUCT),
    (jax.jit(jnp.matmul), (shape(5, 7), shape(7, 11)), PRODUCT),
    # Its gradient is as much once more for each argument.
    (jax.grad(lambda x, w: jnp.sin(x @ w).sum(), 1), (shape(5, 7), shape(7, 11)), 2 * PRODUCT),
    (jax.grad(lambda x, w: jnp.sin(x @ w).sum(), (0, 1)), (shape(5, 7), shape(7, 11)), 3 * PRODUCT),
    (
      lambda x, w: jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=9)[0],
      (shape(5, 7), shape(7, 7)),
      9 * 2 * 5 * 7 * 7,
    ),
    (lambda x, w: jax.lax.map(lambda r: r @ w, x), (shape(4, 5, 7), shape(7, 11)), 4 * PRODUCT),
    (
      lambda x, w: jax.lax.cond(x.sum() > 0, lambda: (x @ w).sum(), lambda: 0.0),
      (shape(5, 7), shape(7, 11)),
      PRODUCT,
    ),
    # Rematerialised: twice forward, and backward to the second argument.
    (
      jax.grad(jax.checkpoint(lambda x, w: jnp.sin(jnp.sin(x @ w)).sum()), 1),
      (shape(5, 7), shape(7, 11)),
      3 * PRODUCT,
    ),
  ],
)
def test_the_flops_of_products_are_counted_as_often_as_they_run(function, shapes, flops):
  assert cost.flops(function, *shapes) == flops


def test_the_flops_of_a_convolution_are_those_of_its_patches():
  convolve = lambda x, w: jax.lax.conv_general_dilated(
    x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
  )
  one = 2 * (4 * 8 * 8 * 10) * (3 * 3 * 3)  # outputs x what each sums: 6 channels in 2 groups
  shapes = (shape(4, 16, 16, 6), shape(3, 3, 3, 10))
  assert cost.flops(convolve, *shapes) == one


def test_a_network_has_the_flops_that_xla_counts_to_a_tenth():
  procedure = procedures.from_config(debug_config())
  abstract = jax.eval_shape(procedure.init)
  images = jax.ShapeDtypeStruct((2, 112, 112, 3), np.uint8)
  arguments = (abstract.params, abstract.model_state, images)
  counted = cost.flops(procedure.predict, *arguments)
  xla = jax.jit(procedure.predict).lower(*arguments).cost_analysis()["flops"]
  # XLA leaves out what falls on padding, and counts sums and functions too.
  assert counted == pytest.approx(xla, rel=0.1)


MESH = sharding.make_mesh()
ROWS, WHOLE = NamedSharding(MESH, PartitionSpec(("data", "model"))), sharding.replicated(MESH)


def sent(function, *arguments, **kwargs):
  found = cost.of(jax.jit(function, **kwargs).lower(*arguments).compile()).collectives
  return {kind: (c.count, c.bytes) for kind, c in found.items()}


def place(*sizes, on=ROWS):
  return jax.ShapeDtypeStruct(sizes, np.float32, sharding=on)


def over_devices(function):
  return jax.shard_map(
    function, mesh=MESH, in_specs=ROWS.spec, out_specs=ROWS.spec, check_vma=False
  )


def test_messages_are_counted_with_their_bytes():
  x = place(64, 32)
  assert sent(lambda x: x + 1, x) == {}
  assert sent(lambda x: x.sum(0), x, out_shardings=WHOLE) == {"all-reduce": (1, 32 * 4)}
  assert sent(lambda x: x + 1, x, out_shardings=WHOLE) == {"all-gather": (1, 64 * 32 * 4)}
  scatter = over_devices(lambda x: jax.lax.psum_scatter(x, ("data", "model"), tiled=True))
  assert sent(scatter, x) == {"reduce-scatter": (1, 8 * 32 * 4)}  # what goes in
  right = [(i, (i + 1) % 8) for i in range(8)]
  turn = over_devices(lambda x: jax.lax.ppermute(x, ("data", "model"), right))
  assert sent(turn, x) == {"collective-permute": (1, 8 * 32 * 4)}


def test_messages_in_a_loop_are_counted_each_time():
  add = lambda c, _: (jax.lax.psum(c, ("data", "model")) / 8, None)
  loop = over_devices(lambda x: jax.lax.scan(add, x, None, length=5)[0])
  assert sent(loop, place(64, 32)) == {"all-reduce": (5, 5 * 8 * 32 * 4)}


def test_memory_is_a_devices_share_and_what_is_donated_is_no_output():
  x = place(64, 32)
  found = cost.of(jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile())
  assert (found.arguments, found.outputs) == (8 * 32 * 4, 0)
  kept = cost.of(jax.jit(lambda x: x + 1).lower(x).compile())
  assert (kept.arguments, kept.outputs) == (8 * 32 * 4, 8 * 32 * 4)
  assert kept.memory == kept.arguments + kept.outputs + kept.temporaries + kept.code


# As TPUs' programs are written: a message goes on between fusions, which all name it.
TPU = """HloModule jit_train_step, is_scheduled=true

%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

%async_collective_start (p: bf16[64,128]) -> (bf16[64,128], bf16[512,128], u32[]) {
  %p = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, dimensions={0}
  ROOT %start = (bf16[64,128]{1,0}, bf16[512,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%fused (q: bf16[64,128]) -> bf16[512,128] {
  %q = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[512,128]{1,0:T(8,128)(2,1)} all-gather(%q), channel_id=7, dimensions={0}
}

ENTRY %main (x: bf16[64,128]) -> (bf16[512,128], f32[4]) {
  %x = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %y = f32[4]{0:T(128)} constant({1, 2, 3, 4})
  %f = (bf16[64,128]{1,0}, bf16[512,128]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%async_collective_start
  %g = bf16[512,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kCustom, calls=%fused
  %all-reduce.3 = (f32[4]{0:T(128)}, bf16[64,128]{1,0}) all-reduce(%y, %x), channel_id=9, to_apply=%add
  %collective-permute-start.4 = (bf16[64,128]{1,0:T(8,128)(2,1)S(1)}, bf16[64,128]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %collective-permute-done.4 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start.4)
  ROOT %out = (bf16[512,128]{1,0}, f32[4]{0}) tuple(%g, %y)
}
"""  # noqa: E501


def test_a_message_that_several_instructions_name_is_one():
  block = 64 * 128 * 2
  assert cost.collectives(TPU) == {
    "all-gather": cost.Collective(1, 8 * block),
    "all-reduce": cost.Collective(1, 4 * 4 + block),
    "collective-permute": cost.Collective(1, block),
  }


# The denominator of MFU.


def device(kind, platform="gpu", process=0):
  return types.SimpleNamespace(device_kind=kind, platform=platform, process_index=process)


@pytest.mark.parametrize(
  ("kind", "teraflops"),
  [
    ("NVIDIA H200", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA A100-SXM4-40GB", 312),
    ("TPU v5 lite", 197),
    ("TPU v5p", 459),
  ],
)
def test_the_peak_of_a_known_device_is_its_data_sheets(kind, teraflops):
  found = cost.peak([device(kind)] * 4, jnp.bfloat16)
  assert found.teraflops == 4 * teraflops
  assert found.source == f"data sheet, 4 x {teraflops:g} TFLOP/s"


def test_the_peak_of_others_is_measured_and_fake_devices_are_one_machine(monkeypatch):
  monkeypatch.setattr(cost, "measured_peak", lambda dtype: 2.5)
  assert cost.peak([device("cpu", "cpu")] * 8, jnp.float32).teraflops == 2.5
  two = [device("cpu", "cpu"), device("cpu", "cpu", 1)]
  assert cost.peak(two, jnp.float32) == cost.Peak(5.0, "measured, 2 x 2.5 TFLOP/s")
  assert cost.peak([device("NVIDIA Toy")] * 3, jnp.bfloat16).teraflops == 7.5
  assert cost.peak([device("NVIDIA H200")], jnp.float32).teraflops == 2.5  # no products of bfloat16


def test_a_measured_peak_is_of_the_order_of_numpys_products():
  x = np.ones((1024, 1024), np.float32)
  x @ x
  times = []
  for _ in range(5):
    start = time.perf_counter()
    x @ x
    times.append(time.perf_counter() - start)
  numpys = 2 * 1024**3 / min(times) / 1e12
  assert numpys / 8 < cost.measured_peak(jnp.float32) < 8 * numpys


def test_what_is_computed_twice_counts_once():
  config = debug_config()
  config["batch_size"] = 8
  once = experiment.step_flops(config)
  config["model"]["encoder"]["remat"] = True
  config["accumulate"] = 4
  assert experiment.step_flops(config) == once
  assert once > 0
