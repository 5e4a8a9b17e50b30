import functools
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from jax.sharding import PartitionSpec

import affjax
from affjax import (
  checkpoints,
  cost,
  evaluate,
  experiment,
  paths,
  procedures,
  sharding,
  state,
  train,
)

GOLDENS = Path(__file__).parent / "goldens"
WRITE = "AFFJAX_WRITE_GOLDENS"  # environment variable: if set, goldens are written, not compared


@pytest.mark.parametrize(
  ("given", "shape"),
  [
    (dict(), (8, 1)),
    (dict(data=-1, model=2), (4, 2)),
    (dict(data=2, model=4), (2, 4)),
    (dict(data=1, model=8), (1, 8)),
  ],
)
def test_a_mesh_covers_all_devices(given, shape):
  mesh = sharding.make_mesh(**given)
  assert tuple(mesh.shape.values()) == shape
  assert mesh.axis_names == ("data", "model")
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize(
  ("data", "model"), [(3, 1), (-1, 3), (8, 2), (4, 1), (-1, 0), (0, 8), (-1, -1), (-8, -1), (-2, 1)]
)
def test_a_mesh_that_does_not_cover_the_devices_is_refused(data, model):
  with pytest.raises(ValueError, match="does not cover 8 devices: set config.mesh.data=-1"):
    sharding.make_mesh(data, model)


def test_batches_must_divide_over_the_devices():
  mesh = sharding.make_mesh(-1, 2)
  sharding.check_batch(16, mesh, "config.batch_size")
  for size in (0, 12, -8):
    with pytest.raises(ValueError, match=f"config.batch_size={size} is not a multiple of the 8"):
      sharding.check_batch(size, mesh, "config.batch_size")


@pytest.mark.parametrize("model", [1, 2, 8])
def test_a_global_batch_is_split_over_the_devices_and_holds_the_same_rows(model):
  mesh = sharding.make_mesh(-1, model)
  batch = {"image": np.arange(16 * 6, dtype=np.uint8).reshape(16, 2, 3), "mask": np.arange(16.0)}
  spread = sharding.global_batch(batch, mesh)
  for name, array in spread.items():
    assert array.shape == batch[name].shape
    np.testing.assert_array_equal(array, batch[name])
    shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start)
    assert len({shard.device for shard in shards}) == 8
    for i, shard in enumerate(shards):
      np.testing.assert_array_equal(shard.data, batch[name][2 * i : 2 * i + 2])
  assert spread["image"].dtype == np.uint8


@pytest.mark.parametrize("model", [1, 2, 8])
def test_rows_come_back_in_their_order(model):
  rows = {"a": np.arange(16), "b": np.arange(32).reshape(16, 2)}
  back = sharding.local_rows(sharding.global_batch(rows, sharding.make_mesh(-1, model)))
  for name, value in rows.items():
    np.testing.assert_array_equal(back[name], value)


def test_replicated_arrays_are_whole_on_every_device():
  array = jax.device_put(np.arange(4), sharding.replicated(sharding.make_mesh()))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, np.arange(4))


def test_a_learned_token_can_be_joined_to_a_batch_that_is_split():
  mesh = sharding.make_mesh()
  patches = sharding.global_batch(np.ones((8, 3, 2), np.float32), mesh)
  token = jax.device_put(np.zeros((1, 1, 2), np.float32), sharding.replicated(mesh))
  join = lambda t, x: jnp.concatenate([jnp.broadcast_to(t, (8, 1, 2)), x], axis=1)
  assert jax.jit(join)(token, patches).shape == (8, 4, 2)


# Rules.


def specs(tree, rules, mesh, parameters=None):
  """Name -> where it is split, of a tree of arrays."""
  names = paths.named(tree) if parameters is None else parameters
  placed = sharding.shardings(tree, names, sharding.parse(rules, mesh), mesh)
  return {name: where.spec for name, where in paths.named(placed).items()}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


@pytest.mark.parametrize(
  ("sizes", "tactic", "spec"),
  [
    ((768, 3072), "fsdp", (None, ("data", "model"))),
    ((3072, 768), "fsdp", (("data", "model"),)),
    ((768, 768), "fsdp", (("data", "model"),)),  # of equal ones the first
    ((3, 3, 96, 192), "fsdp", (None, None, None, ("data", "model"))),
    ((1001, 96), "fsdp", (None, ("data", "model"))),  # the largest that can be
    ((1001, 97), "fsdp", ()),
    ((12, 1001), "fsdp", ()),
    ((12, 1001), "fsdp:data", ("data",)),
    ((1001, 98), "fsdp:model", (None, "model")),
    ((96, 384), "replicate", ()),
    ((8192,), "fsdp", (("data", "model"),)),
    ((8184,), "fsdp", ()),  # small
    ((), "fsdp", ()),
  ],
)
def test_an_array_is_split_along_its_largest_dimension_that_the_devices_divide(sizes, tactic, spec):
  found = sharding.partition(sizes, tactic, sharding.make_mesh(-1, 2))  # 4 x 2
  assert found == PartitionSpec(*spec)


def test_one_device_splits_nothing():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  for rules in sharding.RULES:
    assert set(specs({"kernel": shape(96, 384)}, rules, mesh).values()) == {PartitionSpec()}


def test_the_first_pattern_that_is_found_counts_and_what_has_none_is_whole():
  tree = {
    "encoder": {"blocks": [{"kernel": shape(96, 384)}, {"kernel": shape(96, 384)}]},
    "decoder": {"kernel": shape(96, 384), "tokens": shape(96, 384)},
  }
  rules = "blocks/1=replicate; kernel$=fsdp:model; blocks=fsdp:data"
  found = specs(tree, rules, sharding.make_mesh(-1, 2))
  split = PartitionSpec(None, "model")
  assert found == {
    "decoder/kernel": split,
    "decoder/tokens": PartitionSpec(),
    "encoder/blocks/0/kernel": split,
    "encoder/blocks/1/kernel": PartitionSpec(),
  }


def test_what_optimisers_and_averages_keep_follows_its_parameter():
  params = {"model": {"a": {"kernel": shape(96, 384)}, "b": {"kernel": shape(96, 384)}}}
  tx = optax.chain(
    optax.masked(optax.trace(0.9), {"model": {"a": True, "b": False}}),
    optax.adamw(1e-3, mask={"model": {"a": False, "b": True}}),
  )
  whole = state.TrainState(
    step=shape(), params=params, model_state={"model": {"mean": shape(96, 384)}},
    opt_state=jax.eval_shape(tx.init, params), ema=params,
  )  # fmt: skip
  found = specs(whole, "a/=fsdp", sharding.make_mesh(), paths.named(params))
  split = {name for name, spec in found.items() if spec}
  assert split == {
    "params/model/a/kernel", "ema/model/a/kernel", "opt_state/0/inner_state/trace/model/a/kernel",
    "opt_state/1/0/mu/model/a/kernel", "opt_state/1/0/nu/model/a/kernel",
  }  # fmt: skip
  assert {found[name] for name in split} == {PartitionSpec(None, ("data", "model"))}
  assert "model_state/model/mean" in found


def test_a_parameter_whose_name_ends_like_another_follows_its_own_rule():
  params = {"a": {"kernel": shape(96, 384)}, "b": {"a": {"kernel": shape(96, 384)}}}
  found = specs({"mu": params}, "^b/=fsdp", sharding.make_mesh(), paths.named(params))
  assert [name for name, spec in found.items() if spec] == ["mu/b/a/kernel"]


@pytest.mark.parametrize(
  ("rules", "said"),
  [
    ("fdsp", "rules='fdsp': use one of replicated, fsdp, hybrid, or PATTERN=TACTIC"),
    ("kernel=split", "with tactics replicate, fsdp, fsdp:model, fsdp:data"),
    ("=fsdp", "use one of"),
    ("(=fsdp", "config.mesh.rules='\\(' is no regular expression"),
    ("hybrid", "splits along the model axis, which has one of 8 devices: set config.mesh.model"),
    ("kernal=fsdp", "'kernal' is in no parameter's name; the closest are encoder/kernel"),
  ],
)
def test_rules_that_cannot_be_followed_are_refused_in_one_line(rules, said):
  with pytest.raises(ValueError, match=said) as error:
    specs({"encoder": {"kernel": shape(96, 384)}}, rules, sharding.make_mesh())
  assert "\n" not in str(error.value)


# Every parameter of ViT-B.


@functools.cache
def vit_b():
  return jax.eval_shape(
    procedures.from_config(debug_config("variant=B/16", model__decoder__position="decoder")).init
  )


def test_the_place_of_every_parameter_of_vit_b_is_as_it_was():
  params = vit_b().params
  columns = [("fsdp", 1), ("fsdp", 2), ("hybrid", 2)]
  found = [specs(params, rules, sharding.make_mesh(-1, model)) for rules, model in columns]
  show = lambda spec: " ".join("+".join([a] if isinstance(a, str) else a or "-") for a in spec)
  heads = [f"{rules} {8 // model}x{model}" for rules, model in columns]
  lines = [f"{'parameter':64}{'shape':20}" + "".join(f"{head:20}" for head in heads)]
  for name, leaf in paths.named(params).items():
    size = " x ".join(map(str, leaf.shape))
    lines.append(f"{name:64}{size:20}" + "".join(f"{show(f[name]):20}" for f in found))
  text = "\n".join(line.rstrip() for line in lines) + "\n"
  golden = GOLDENS / "sharding_vit_b.txt"
  if os.environ.get(WRITE):
    golden.write_text(text)
  assert text.splitlines() == golden.read_text().splitlines(), f"if it is meant so, set {WRITE}=1"


@pytest.mark.parametrize("model", [1, 2])
def test_by_default_every_parameter_of_vit_b_is_whole(model):
  assert not any(specs(vit_b().params, "replicated", sharding.make_mesh(-1, model)).values())


@pytest.mark.parametrize(
  ("rules", "model", "parts"), [("fsdp", 1, 8), ("fsdp", 2, 8), ("hybrid", 2, 2)]
)
def test_a_devices_share_of_vit_b_is_what_the_rules_promise(rules, model, parts):
  mesh = sharding.make_mesh(-1, model)
  placed = sharding.shardings(
    vit_b(), paths.named(vit_b().params), sharding.parse(rules, mesh), mesh
  )
  share = jax.tree.map(lambda x, s: int(np.prod(s.shard_shape(x.shape))), vit_b(), placed)
  whole = sum(x.size for x in jax.tree.leaves(vit_b()))
  assert sum(jax.tree.leaves(share)) == pytest.approx(whole / parts, rel=0.02)


# Training.


def wide_config(**changes):
  """As wide as ViT-S, where splitting pays, and a block deep."""
  return debug_config(
    "variant=S/16,batch_size=16", model__encoder=dict(name="vit.ViT", variant="S/16", depth=1),
    model__decoder=dict(name="decoders.TaskTokens", depth=1),
    optimizer__learning_rate=1e-5, **changes,
  )  # fmt: skip


def toy_batch(config):
  rng = np.random.default_rng(0)
  rows, pixels = 16, config["data"]["image_size"]
  names = {task: len(names) for task, names in config["labels"].items()}
  labels = {t: rng.uniform(0, 1, (rows, n)).astype(np.float32) for t, n in names.items()}
  labels["expression"] = np.eye(8, dtype=np.float32)[rng.integers(0, 8, rows)]
  return {
    "image": rng.integers(0, 256, (rows, pixels, pixels, 3), np.uint8),
    "labels": labels,
    "mask": {
      t: np.ones(rows if t == "expression" else (rows, n), np.float32) for t, n in names.items()
    },
    "index": np.arange(rows, dtype=np.int32),
  }


@functools.cache
def trained(rules, model, devices):
  """Four steps: the losses, the state's places before and after, and XLA's word on the step."""
  config = wide_config(mesh__rules=rules, mesh__model=model)
  mesh, parsed = experiment.open_mesh(config, jax.devices()[:devices])
  procedure = procedures.from_config(config)
  abstract = experiment.abstract_state(procedure, mesh, parsed)
  places = jax.tree.map(lambda x: x.sharding, abstract)
  current = jax.jit(procedure.init, out_shardings=places)()
  batch = sharding.global_batch(toy_batch(config), mesh)
  step = experiment.train_step(procedure, abstract, mesh).lower(current, batch).compile()
  losses = []
  for _ in range(4):
    current, metrics = step(current, batch)
    losses.append({k: float(v) for k, v in metrics.items() if k.startswith(("loss", "weight"))})
  after = jax.tree.map(lambda x, p: x.sharding.is_equivalent_to(p, x.ndim), current, places)
  return losses, all(jax.tree.leaves(after)), cost.of(step), current


@pytest.mark.slow
@pytest.mark.parametrize(("rules", "model"), [("fsdp", 1), ("hybrid", 2)])
def test_a_split_state_trains_as_one_device_does_and_stays_split(rules, model):
  alone, _, whole, state_alone = trained("replicated", 1, 1)
  losses, stays, share, current = trained(rules, model, 8)
  assert stays
  assert losses[0]["loss"] != losses[-1]["loss"]
  for found, expected in zip(losses, alone, strict=True):
    for name in expected:
      assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
  for found, expected in zip(*map(jax.tree.leaves, (current, state_alone)), strict=True):
    # Adam makes a step of full size out of a gradient that is rounding: four of them, both ways.
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=8e-5)
  # By XLA's analysis: parameters, optimiser and moving average, beside a batch of 0.6 MB.
  batch = sum(x.nbytes for x in jax.tree.leaves(toy_batch(wide_config())))
  parts = 8 if rules == "fsdp" else 2
  assert share.arguments - batch / 8 == pytest.approx((whole.arguments - batch) / parts, rel=0.1)
  gathered = share.collectives["all-gather"].bytes
  parameters = sum(x.nbytes for x in jax.tree.leaves(current.params))
  # Of a batch as small as this, XLA would rather sum a few products than gather their matrices.
  assert 0.5 * parameters < gathered < 3 * parameters


@pytest.mark.parametrize(("before", "after"), [("replicated", "fsdp"), ("fsdp", "replicated")])
def test_a_checkpoint_restores_under_other_rules(tmp_path, before, after):
  params = {"model": {"kernel": shape(96, 384), "bias": shape(384)}}
  whole = {"params": params, "opt_state": [{"mu": params}]}
  mesh = sharding.make_mesh()

  def under(rules):
    placed = sharding.shardings(whole, paths.named(params), sharding.parse(rules, mesh), mesh)
    return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), whole, placed
    )

  rng = np.random.default_rng(0)
  fill = lambda x: jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding)
  written = jax.tree.map(fill, under(before))
  saved = checkpoints.Checkpoints(tmp_path)
  saved.save(1, written, {"step": 1})
  saved.wait()
  restored, _ = saved.restore(1, under(after))
  saved.close()
  places = [x.sharding.spec for x in jax.tree.leaves(under(after))]
  assert [x.sharding.spec for x in jax.tree.leaves(restored)] == places
  assert any(places) == (after == "fsdp")
  jax.tree.map(np.testing.assert_array_equal, restored, written)


@pytest.mark.slow
def test_a_run_goes_on_is_scored_and_opens_under_other_rules(tiny_faces, tmp_path, capsys):
  def config(**mesh):
    return debug_config(
      steps=10, mesh=dict(data=-1, model=1, rules="replicated") | mesh,
      model__encoder=dict(name="vit.ViT", variant="mu/16", depth=1),
      model__decoder=dict(name="decoders.TaskTokens", width=96, depth=1),
    )  # fmt: skip

  train.run(config(model=2, rules="hybrid"), tmp_path, tiny_faces)
  shutil.rmtree(tmp_path / "checkpoints" / "10")
  whole = train.run(config(), tmp_path, tiny_faces)
  assert "continues from step 5" in capsys.readouterr().out
  split = evaluate.run(config(model=2, rules="fsdp"), tmp_path, tiny_faces)
  for name, scores in whole["scores"].items():
    assert split["scores"][name] == pytest.approx(scores, abs=2e-3)
  predictor = affjax.load(str(tmp_path))
  assert predictor.step == whole["step"]
  assert len(predictor.predict(toy_batch(config())["image"])) == 16
