import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import debug_config
from flax import nnx

from affjax import cost, experiment, optim, paths, procedures
from affjax.models import densenet, resnet, vgg
from affjax.procedures import supervised
from configs import vit_mtl

PARAMS = {
  "encoder": {
    "kernel": jnp.full((2, 3), 2.0),
    "bias": jnp.full((3,), 2.0),
    "norm": {"scale": jnp.full((3,), 2.0)},
    "position": jnp.full((4, 3), 2.0),
  },
  "task_tokens": jnp.full((3, 3), 2.0),
  "log_variance": jnp.float32(2.0),
}


def like(value):
  return jax.tree.map(lambda p: jnp.full_like(p, value), PARAMS)


def rates(steps=100, **options):
  schedule = optim.learning_rate_schedule(learning_rate=0.5, steps=steps, **options)
  return np.array([schedule(step) for step in range(steps + 1)])


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_from_zero_to_the_peak(kind):
  got = rates(warmup_steps=20, kind=kind)
  np.testing.assert_allclose(got[:21], 0.5 * np.arange(21) / 20, atol=1e-6)
  assert got.max() == pytest.approx(0.5)


def test_after_warm_up_each_schedule_takes_its_form():
  t = np.arange(81) / 80
  forms = {
    "cosine": 0.25 * (1 + np.cos(np.pi * t)),
    "linear": 0.5 * (1 - t),
    "constant": np.full(81, 0.5),
  }
  for kind, expected in forms.items():
    np.testing.assert_allclose(rates(warmup_steps=20, kind=kind)[20:], expected, atol=1e-6)


def test_without_warm_up_the_first_step_is_at_the_peak():
  assert rates(warmup_steps=0, kind="cosine")[0] == pytest.approx(0.5)


def test_a_run_may_be_all_warm_up():
  np.testing.assert_allclose(rates(10, warmup_steps=10), 0.05 * np.arange(11), atol=1e-6)


def test_an_unknown_schedule_is_answered_with_the_known_ones():
  with pytest.raises(ValueError, match="config.optimizer.schedule='step'.*'cosine'"):
    rates(warmup_steps=0, kind="step")


@pytest.mark.parametrize("warmup", [-1, 101])
def test_a_warm_up_longer_than_the_run_is_refused(warmup):
  with pytest.raises(ValueError, match=f"warmup_steps={warmup} is not within config.steps=100"):
    rates(warmup_steps=warmup)


def test_only_matrices_that_are_no_tokens_or_positions_decay():
  transform, *_ = optim.adamw(
    steps=10, learning_rate=0.1, schedule="constant", weight_decay=0.5, clip_norm=0.0
  )
  updates, _ = transform.update(like(0.0), transform.init(PARAMS), PARAMS)
  encoder = updates.pop("encoder")
  np.testing.assert_allclose(encoder.pop("kernel"), -0.1 * 0.5 * 2.0, rtol=1e-5)
  for update in jax.tree.leaves([encoder, updates]):
    assert not update.any()


def run(transform, gradients):
  params, state = PARAMS, transform.init(PARAMS)
  for value in gradients:
    updates, state = transform.update(like(value), state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(params["encoder"]["kernel"])


def test_adamw_is_the_formula_of_the_paper():
  transform, *_ = optim.adamw(
    steps=10, learning_rate=0.1, schedule="constant", weight_decay=0.05, clip_norm=0.0, b2=0.99
  )
  p, m, v = 2.0, 0.0, 0.0
  gradients = [0.3, -2.0, 0.7]
  for t, g in enumerate(gradients, 1):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    p -= 0.1 * (step + 0.05 * p)
  np.testing.assert_allclose(run(transform, gradients), p, rtol=1e-5)


def test_gradients_are_clipped_by_the_norm_of_the_whole_tree_before_adam():
  options = dict(steps=10, learning_rate=0.1, schedule="constant")
  clipped, *_ = optim.adamw(**options, clip_norm=1.0)
  free, *_ = optim.adamw(**options, clip_norm=0.0)
  norm_of_ones = np.sqrt(6 + 3 + 3 + 12 + 9 + 1)
  got = run(clipped, [0.01, 50.0, -0.02])
  np.testing.assert_allclose(got, run(free, [0.01, 1 / norm_of_ones, -0.02]), rtol=1e-5)
  assert np.abs(got - run(free, [0.01, 50.0, -0.02])).max() > 1e-3


def test_the_schedule_that_is_returned_is_the_one_that_is_applied():
  transform, rate, *_ = optim.adamw(
    steps=10, learning_rate=0.1, warmup_steps=5, weight_decay=0.0, clip_norm=0.0
  )
  state, params = transform.init(PARAMS), PARAMS
  for step in range(8):
    updates, state = transform.update(like(1.0), state, params)
    # Adam's step is 1 where all gradients are equal.
    np.testing.assert_allclose(updates["encoder"]["bias"], -rate(step), rtol=1e-4, atol=1e-9)


def test_a_rate_falls_to_the_fraction_that_is_asked_for():
  for kind in ("cosine", "linear", "exponential"):
    got = rates(warmup_steps=20, kind=kind, final_fraction=0.04)
    assert (got[20], got[-1]) == (pytest.approx(0.5), pytest.approx(0.02))
  t = np.arange(81) / 80
  np.testing.assert_allclose(got[20:], 0.5 * 0.04**t, rtol=1e-5)  # exponential: even factors


def test_a_rate_cannot_fall_exponentially_to_nothing():
  with pytest.raises(ValueError, match="final_fraction=0.0: use above 0 for schedule 'expon"):
    rates(warmup_steps=0, kind="exponential")
  with pytest.raises(ValueError, match="final_fraction=2: use from 0 to 1"):
    rates(warmup_steps=0, final_fraction=2)


def test_an_inverse_root_is_that_of_the_first_transformer():
  peak, warmup, steps = 0.5, 25, 400
  factor = peak * warmup**0.5  # there model width^-1/2
  t = np.arange(1, steps + 1)
  expected = factor * np.minimum(t**-0.5, t * warmup**-1.5)
  got = rates(steps, warmup_steps=warmup, kind="inverse_sqrt")
  np.testing.assert_allclose(got[1:], expected, rtol=1e-5)
  assert got[0] == 0
  assert got.max() == got[warmup] == pytest.approx(peak)
  assert got[100] == pytest.approx(peak / 2)  # four times the warm-up


def test_an_inverse_root_needs_a_warm_up():
  with pytest.raises(ValueError, match="optimizer.warmup_steps=0: use 1 or more .*inverse_sqrt"):
    rates(warmup_steps=0, kind="inverse_sqrt")


def test_epsilon_is_added_to_the_root_of_the_second_moment():
  options = dict(steps=10, learning_rate=0.1, schedule="constant", clip_norm=0.0, weight_decay=0.0)
  found = run(optim.adamw(**options, epsilon=0.5)[0], [0.3])
  np.testing.assert_allclose(found, 2.0 - 0.1 * 0.3 / (0.3 + 0.5), rtol=1e-6)


@pytest.mark.parametrize("schedule", ["exponential", "inverse_sqrt"])
def test_a_decay_of_one_is_as_large_as_the_learning_rate_at_every_step(schedule):
  transform, rate, *_ = optim.adamw(
    steps=20, learning_rate=0.1, schedule=schedule, warmup_steps=4, final_fraction=0.5,
    weight_decay=1.0, clip_norm=0.0,
  )  # fmt: skip
  params, state = PARAMS, transform.init(PARAMS)
  for step in range(20):
    updates, state = transform.update(like(0.0), state, params)
    np.testing.assert_allclose(updates["encoder"]["kernel"], -rate(step) * 2.0, rtol=1e-5)


# Groups and layers, on what a model of four blocks has.

DEPTH = 4


def net(stacked=False, seed=0):
  """Parameters named as a ViT's; the same numbers in one module of blocks or in four."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  blocks = {"mlp": {"kernel": draw(DEPTH, 2, 2), "bias": draw(DEPTH, 2)}}
  if not stacked:
    blocks = {i: jax.tree.map(lambda x: x[i], blocks) for i in range(DEPTH)}  # noqa: B023
  return {
    "model": {
      "encoder": {
        "stem": {"kernel": draw(3, 2)},
        "positions": draw(1, 2, 2),
        "blocks": blocks,
        "norm": {"scale": draw(2)},
      },
      "decoder": {"tokens": draw(3, 2), "heads": {"kernel": draw(2, 2), "bias": draw(2)}},
    },
    "log_variance": {"va": draw()},
  }


def named(tree):
  return {k: np.asarray(v) for k, v in paths.named(tree).items()}


def trained(optimizer, params, gradients):
  """The parameters after a step for each gradient, and the optimiser's last state."""
  transform, *_ = optimizer

  @jax.jit
  def step(params, state, gradient):
    updates, state = transform.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = jax.jit(transform.init)(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params, state


FLAT = dict(steps=10, schedule="constant", clip_norm=0.0)


def adamw_of_the_paper(p, gradients, rate, decay):
  m = v = np.zeros_like(p)
  for t, g in enumerate(gradients, 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    p = p - rate * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * p)
  return p


def sgd_of_the_paper(p, gradients, rate, decay, momentum=0.9, nesterov=False):
  v = np.zeros_like(p)
  for g in gradients:
    g = g + decay * p
    v = momentum * v + g
    p = p - rate * (g + momentum * v if nesterov else v)
  return p


GROUPS = {
  "encoder": {"pattern": "encoder", "learning_rate": 0.01, "weight_decay": 0.5},
  "heads": {"pattern": "heads", "weight_decay": 0.25},
}


@pytest.mark.parametrize(
  ("make", "formula", "options"),
  [
    (optim.adamw, adamw_of_the_paper, {}),
    (optim.sgd, sgd_of_the_paper, {}),
    (optim.sgd, sgd_of_the_paper, {"nesterov": True}),
    (optim.sgd, sgd_of_the_paper, {"momentum": 0.0}),
  ],
)
def test_each_group_learns_by_the_formula_with_its_own_rate_and_decay(make, formula, options):
  params, gradients = net(), [net(seed=s) for s in (1, 2, 3)]
  optimizer = make(learning_rate=0.1, weight_decay=0.125, groups=GROUPS, **options, **FLAT)
  got = named(trained(optimizer, params, gradients)[0])
  start, slopes = named(params), [named(g) for g in gradients]
  for name, p in start.items():
    rate = 0.01 if "encoder" in name else 0.1
    decay = 0.5 if "encoder" in name else 0.25 if "heads" in name else 0.125
    if not name.endswith("kernel"):
      decay = 0.0
    expected = formula(p, [g[name] for g in slopes], rate, decay, **options)
    np.testing.assert_allclose(got[name], expected, rtol=2e-4, atol=1e-5, err_msg=name)


def test_lars_makes_the_step_of_a_matrix_as_long_as_a_share_of_its_norm():
  params, gradient = net(), net(seed=1)
  optimizer = optim.lars(learning_rate=0.5, weight_decay=0.1, momentum=0.0, trust=0.01, **FLAT)
  after, _ = trained(optimizer, params, [gradient])
  got, start, slope = map(named, (after, params, gradient))
  for name, p in start.items():
    step = slope[name]
    if name.endswith("kernel"):
      step = step + 0.1 * p
      step = 0.01 * np.linalg.norm(p) / np.linalg.norm(step) * step
    np.testing.assert_allclose(got[name], p - 0.5 * step, rtol=1e-4, atol=1e-6, err_msg=name)


def test_lars_refuses_blocks_that_are_one_array():
  transform, *_ = optim.lars(**FLAT)
  with pytest.raises(ValueError, match="blocks/mlp/bias holds several layers"):
    transform.init(net(stacked=True))


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd, optim.lars])
def test_what_is_frozen_keeps_every_bit_and_costs_the_optimiser_nothing(make):
  params = net()
  groups = {"encoder": {"pattern": "encoder", "freeze": True}}
  optimizer = make(steps=10, learning_rate=0.1, weight_decay=0.5, clip_norm=1.0, groups=groups)
  after, state = trained(optimizer, params, [net(seed=s) for s in range(1, 4)])
  before, after = named(params), named(after)
  for name, p in before.items():
    assert (p.tobytes() == after[name].tobytes()) == ("encoder" in name), name
  moments = 2 if make is optim.adamw else 1
  of_others = sum(p.size for name, p in before.items() if "encoder" not in name)
  assert sum(x.size for x in jax.tree.leaves(state) if x.dtype == jnp.float32) == (
    moments * of_others
  )


def test_the_gradient_is_clipped_by_the_norm_of_what_learns():
  groups = {"encoder": {"pattern": "encoder", "freeze": True}}
  gradient = net(seed=1)
  free = [x for name, x in named(gradient).items() if "encoder" not in name]
  norm = np.sqrt(sum((x**2).sum() for x in free))
  optimizer = optim.sgd(steps=10, learning_rate=1.0, schedule="constant", clip_norm=norm / 2,
                        groups=groups)  # fmt: skip
  after = trained(optimizer, net(), [gradient])[0]
  step = net()["log_variance"]["va"] - after["log_variance"]["va"]
  np.testing.assert_allclose(step, gradient["log_variance"]["va"] / 2, rtol=1e-5)


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd, optim.lars])
def test_what_thaws_learns_from_then_on_as_in_a_run_that_begins_there(make):
  params, gradients = net(), [net(seed=s) for s in range(1, 7)]
  options = dict(learning_rate=0.1, schedule="linear", warmup_steps=2, weight_decay=0.5)
  late = make(steps=6, groups={"low": {"pattern": "encoder", "thaw": 4}}, **options)
  fresh = make(steps=2, groups={"low": {"pattern": "encoder"}}, **options)
  after = lambda *run: named(trained(*run)[0])
  before, until = named(params), after(late, params, gradients[:4])
  once, alone = after(late, params, gradients), after(fresh, params, gradients[4:])
  for name in filter(lambda name: "encoder" in name, before):
    assert until[name].tobytes() == before[name].tobytes(), name
    assert np.abs(once[name] - before[name]).min() > 0, name
    np.testing.assert_allclose(once[name], alone[name], rtol=1e-5, atol=1e-7)


def test_until_a_group_thaws_the_gradient_is_clipped_without_it():
  gradient = net(seed=1)
  free = [x for name, x in named(gradient).items() if "encoder" not in name]
  norms = [np.sqrt(sum((x**2).sum() for x in of)) for of in (free, named(gradient).values())]
  groups = {"low": {"pattern": "encoder", "thaw": 1}}
  options = FLAT | dict(learning_rate=1.0, clip_norm=1.0, momentum=0.0, groups=groups)
  optimizer = optim.sgd(**options)
  state, steps = optimizer.transform.init(net()), []
  for _ in range(2):
    updates, state = optimizer.transform.update(gradient, state, net())
    steps.append(-updates["log_variance"]["va"])
  for step, norm in zip(steps, norms, strict=True):
    np.testing.assert_allclose(step, gradient["log_variance"]["va"] / norm, rtol=1e-5)


def test_the_first_pattern_that_fits_counts():
  wide = {"pattern": "model", "learning_rate": 0.2}
  narrow = {"pattern": "encoder/blocks/[01]", "freeze": True}
  params = net()
  gradient = jax.tree.map(jnp.ones_like, params)
  sgd = lambda groups: optim.sgd(learning_rate=0.1, momentum=0.0, groups=groups, **FLAT)
  after = trained(sgd({"narrow": narrow, "wide": wide}), params, [gradient])[0]
  moved = jax.tree.map(lambda a, b: round(float((a - b).max()), 3), params, after)["model"]
  assert {i: b["mlp"]["kernel"] for i, b in moved["encoder"]["blocks"].items()} == {
    0: 0, 1: 0, 2: 0.2, 3: 0.2,
  }  # fmt: skip
  assert moved["decoder"]["heads"]["bias"] == 0.2
  with pytest.raises(ValueError, match="narrow.pattern=.*groups before it have all that it fits"):
    sgd({"wide": wide, "narrow": narrow})[0].init(params)


def test_a_config_keeps_the_order_of_its_groups():
  config = vit_mtl.get_config("debug")
  with config.unlocked():
    config.optimizer.groups = {"z": {"pattern": "a"}, "b": {"pattern": "c"}}
  assert list(json.loads(config.to_json_best_effort())["optimizer"]["groups"]) == ["z", "b"]


def test_groups_have_schedules_of_their_own():
  options = {"pattern": "encoder", "schedule": "linear", "warmup_steps": 4, "learning_rate": 0.5}
  transform, rate, *_ = optim.sgd(
    steps=10, learning_rate=0.1, warmup_steps=0, momentum=0.0, groups={"encoder": options}
  )
  params = net()
  gradient = jax.tree.map(jnp.ones_like, params)
  update = jax.jit(transform.update)
  state, got = transform.init(params), []
  for _ in range(10):
    updates, state = update(gradient, state, params)
    model = updates["model"]
    got.append((-model["encoder"]["norm"]["scale"][0], -model["decoder"]["heads"]["bias"][0]))
  slow, fast = np.array(got).T
  np.testing.assert_allclose(
    slow, [0, 0.125, 0.25, 0.375, *0.5 * (1 - np.arange(6) / 6)], rtol=1e-5
  )
  np.testing.assert_allclose(fast, 0.05 * (1 + np.cos(np.pi * np.arange(10) / 10)), rtol=1e-5)
  np.testing.assert_allclose(fast, [rate(step) for step in range(10)], rtol=1e-5)


def test_a_run_without_groups_has_the_state_that_earlier_runs_saved():
  transform, *_ = optim.adamw(steps=10)
  plain = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(lambda _: 1.0, mask=optim.decayed)
  )
  structure = lambda t: jax.tree.structure(jax.eval_shape(t.init, PARAMS))
  assert structure(transform) == structure(plain)


LAYERS = {
  "model/encoder/stem/kernel": 0.5**5,
  "model/encoder/positions": 0.5**5,
  "model/encoder/blocks/0/mlp/kernel": 0.5**4,
  "model/encoder/blocks/1/mlp/kernel": 0.5**3,
  "model/encoder/blocks/2/mlp/kernel": 0.5**2,
  "model/encoder/blocks/3/mlp/kernel": 0.5,
  "model/encoder/norm/scale": 1,
  "model/decoder/tokens": 1,
  "model/decoder/heads/kernel": 1,
  "model/decoder/heads/bias": 1,
  "log_variance/va": 1,
}


def test_layers_further_from_the_output_learn_more_slowly():
  factors = paths.named(optim.layer_factors(net(), 0.5))
  biases = {name.replace("kernel", "bias"): f for name, f in LAYERS.items() if "blocks" in name}
  assert factors == LAYERS | biases


def test_layers_of_several_networks_learn_as_those_of_one():
  one = net()["model"]
  factors = optim.layer_factors({"model": {"members": {0: one, 1: one}}}, 0.5)
  alone = optim.layer_factors({"model": one}, 0.5)["model"]
  assert factors["model"]["members"] == {0: alone, 1: alone}


def test_what_follows_the_blocks_of_a_cnn_learns_as_fast_as_the_decoder():
  def factors(make, decay=0.5):
    encoder = nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))
    named = paths.named(optim.layer_factors({"model": {"encoder": encoder}}, decay))
    return {name.removeprefix("model/encoder/"): factor for name, factor in named.items()}

  small = lambda: dict(multiplier=0.125, rngs=nnx.Rngs(0))
  found = factors(lambda: vgg.VGG(image_size=64, dense=(16, 16), **small()))
  assert {f for name, f in found.items() if name.startswith("dense/")} == {1}
  assert (found["blocks/11/kernel"], found["stem/kernel"]) == (0.5, 0.5**13)
  found = factors(lambda: resnet.ResNet(image_size=32, kind="improved", embedding=16, **small()))
  assert {f for name, f in found.items() if name.startswith("embedding/")} == {1}
  found = factors(lambda: densenet.DenseNet(image_size=64, **small()))
  for i, factor in enumerate((0.5**4, 0.5**3, 0.5**2)):
    own = [f for name, f in found.items() if name.startswith((f"blocks/{i}/", f"transitions/{i}/"))]
    assert set(own) == {factor}


def test_of_stacked_blocks_each_has_its_own_factor():
  factors = optim.layer_factors(net(stacked=True), 0.5)["model"]["encoder"]["blocks"]["mlp"]
  assert factors["kernel"].shape == (4, 1, 1)
  assert factors["bias"].shape == (4, 1)
  np.testing.assert_array_equal(factors["bias"][:, 0], [0.5**4, 0.5**3, 0.5**2, 0.5])


@pytest.mark.parametrize("make", [optim.adamw, optim.sgd])
def test_stacked_blocks_learn_as_separate_ones_do(make):
  optimizer = make(steps=10, learning_rate=0.1, weight_decay=0.5, layer_decay=0.7, clip_norm=1.0)
  seeds = (1, 2, 3)
  apart = trained(optimizer, net(), [net(seed=s) for s in seeds])[0]
  stacked = trained(optimizer, net(stacked=True), [net(True, seed=s) for s in seeds])[0]
  blocks = stacked["model"]["encoder"].pop("blocks")
  separate = apart["model"]["encoder"].pop("blocks")
  for index, block in separate.items():
    own = jax.tree.map(lambda x: x[index], blocks)  # noqa: B023
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), block, own)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), apart, stacked)


def test_the_factor_of_a_layer_is_on_its_decay_too():
  optimizer = optim.adamw(learning_rate=0.1, weight_decay=0.5, layer_decay=0.5, **FLAT)
  params = net()
  after = named(trained(optimizer, params, [jax.tree.map(jnp.zeros_like, params)])[0])
  for name, p in named(params).items():
    decay = 0.05 * LAYERS[name] if name.endswith("kernel") else 0.0
    np.testing.assert_allclose(after[name], p * (1 - decay), rtol=1e-6, err_msg=name)


def test_matrices_decay_and_norms_biases_scalars_tokens_positions_and_registers_do_not():
  for stacked in (False, True):
    params = net(stacked)
    params["model"]["encoder"]["registers"] = jnp.ones((1, 4, 2))
    params["model"]["encoder"]["scales"] = jnp.ones(2)
    chosen = {name for name, yes in paths.named(optim.decayed(params)).items() if yes}
    assert chosen == {name for name in paths.named(params) if name.endswith("kernel")}


def refuse(match, params=None, make=optim.adamw, **options):
  params = net() if params is None else params
  with pytest.raises(ValueError, match=match) as error:
    make(steps=10, **options)[0].init(params)
  assert "\n" not in str(error.value)


def test_what_groups_cannot_be_is_said_in_one_line():
  group = lambda **section: {"groups": {"slow": section}}
  where = "config.optimizer.groups.slow"
  refuse(
    f"{where}.pattern='encodr/stem' fits no parameter; there are model/encoder/stem/kernel, ",
    **group(pattern="encodr/stem", freeze=True),
  )
  refuse(f"{where} needs a pattern", **group(freeze=True))
  refuse(f"{where}.pattern='\\(' is no regular expression", **group(pattern="("))
  refuse(f"{where} takes no lr; it takes learning_rate, ", **group(pattern="stem", lr=1.0))
  refuse(f"{where}.schedule='step'", **group(pattern="stem", schedule="step"))
  refuse(f"{where}.warmup_steps=11 is not", **group(pattern="stem", warmup_steps=11))
  refuse(f"{where}.thaw=-1: use a number of updates from 0", **group(pattern="stem", thaw=-1))
  refuse(f"{where}.thaw=0.5: use a number", **group(pattern="stem", thaw=0.5))
  refuse(f"{where}.thaw=10: .* less than config.steps=10", **group(pattern="stem", thaw=10))
  refuse(
    f"{where}.warmup_steps=5 is not within the 4 updates after {where}.thaw=6",
    **group(pattern="stem", thaw=6, warmup_steps=5),
  )
  refuse(f"{where}.freeze='False': use True or", **group(pattern="stem", freeze="False"))
  refuse(f"{where}.learning_rate='1e-3': use a", **group(pattern="stem", learning_rate="1e-3"))
  refuse(f"{where}.weight_decay=-1: use a number", **group(pattern="stem", weight_decay=-1))
  refuse(f"{where}.warmup_steps=1.5: use a whole", **group(pattern="stem", warmup_steps=1.5))
  refuse(f"{where} has freeze=True and thaw=3", **group(pattern="stem", freeze=True, thaw=3))
  refuse("groups.others: that is the group", groups={"others": {"pattern": "stem"}})
  refuse("nothing is left to learn", **group(pattern=".*", freeze=True))


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", True, None])
@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "clip_norm", "epsilon"])
def test_numbers_that_would_climb_or_be_none_are_refused(field, value):
  refuse(rf"config.optimizer.{field}={value!r}: use a number from 0 on", **{field: value})


def test_moments_forget_something():
  refuse("config.optimizer.b1=1: use a number from 0 up to, but not, 1", b1=1)
  for make in (optim.sgd, optim.lars):
    refuse("config.optimizer.momentum=1.5: use a number from 0 up", make=make, momentum=1.5)


def test_layers_need_blocks_and_a_factor_that_is_one():
  refuse("layer_decay=0.0: use above 0 up to 1", layer_decay=0.0)
  refuse("layer_decay=1.5: use above 0 up to 1", layer_decay=1.5)
  bare = {"model": {"encoder": {"stem": {"kernel": jnp.ones((2, 2))}, "norm": jnp.ones(2)}}}
  refuse("needs an encoder with blocks .*; this one has norm, stem:", bare, layer_decay=0.5)


def test_the_groups_of_a_run_are_described():
  optimizer = dict(
    name="optim.adamw",
    learning_rate=0.1,
    schedule="linear",
    warmup_steps=3,
    layer_decay=0.5,
    groups={
      "encoder": {"pattern": "encoder/(stem|pos)", "freeze": True},
      "heads": {"pattern": "heads", "learning_rate": 0.5, "schedule": "constant", "thaw": 7},
      "tokens": {"pattern": "tokens", "schedule": "inverse_sqrt", "warmup_steps": 5},
    },
  )
  config = {"optimizer": optimizer, "steps": 20}
  assert optim.describe(net(), config | {"init": "faceres-deep"}) == [
    "encoder: 10 numbers in 2 arrays, frozen",
    "heads: 6 numbers in 2 arrays, frozen for 7 steps, then learning rate 0.5 (constant after 3"
    " steps of warm-up), weight decay 0.05 on 4 of them",
    "tokens: 6 numbers in 1 arrays, learning rate 0.1 (inverse_sqrt to 0.05 after 5 steps of"
    " warm-up), weight decay 0.05 on 0 of them",
    "others: 27 numbers in 10 arrays, learning rate 0.1 (linear to 0 after 3 steps of warm-up),"
    " weight decay 0.05 on 16 of them",
    "learning rates times 0.5 a layer below the decoder, 0.0312 at the stem",
  ]
  warned = (
    " warning: they stay as they are made, as neither config.init nor config.initialise.source"
  )
  assert optim.describe(net(), config)[0].startswith(
    "encoder: 10 numbers in 2 arrays, frozen;" + warned
  )


def test_a_group_that_does_not_fit_the_model_is_refused_when_the_procedure_is_built():
  groups = {"slow": {"pattern": "encoder/block/0", "learning_rate": 1e-4}}
  with pytest.raises(ValueError, match="fits no parameter; there are model/encoder/blocks/"):
    procedures.from_config(debug_config(optimizer__groups=groups))


def test_micro_batches_and_the_moving_average_leave_what_is_frozen_as_it_is():
  class Toy(nnx.Module):
    def __init__(self, rngs):
      self.encoder = nnx.Linear(8 * 8 * 3, 4, rngs=rngs)
      self.decoder = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, images, *, train=False, rngs=None):
      return {"va": self.decoder(jnp.tanh(self.encoder(images.reshape(len(images), -1))))}

  batch = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8),
    "labels": {"va": np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)},
    "mask": {"va": np.ones((8, 2), np.float32)},
  }
  quiet = ("flip_rate", "scale", "shift", "brightness", "contrast", "cast", "grey_rate")
  groups = {"encoder": {"pattern": "encoder", "freeze": True}}
  procedure = supervised.Supervised(
    make_model=Toy,
    image_size=8,
    losses={"va": {"name": "losses.ccc_loss"}},
    optimizer=optim.sgd(steps=4, learning_rate=0.1, groups=groups),
    augment=dict.fromkeys((*quiet, "erase_rate"), 0.0),
    seed=0,
    ema_decay=0.5,
    accumulate=2,
  )
  start = state = jax.jit(procedure.init)()
  step = jax.jit(procedure.train_step)
  for _ in range(3):
    state, _ = step(state, batch)
  kernel = lambda tree, part: np.asarray(tree["model"][part]["kernel"])
  for tree in (state.params, state.ema):
    assert kernel(tree, "encoder").tobytes() == kernel(start.params, "encoder").tobytes()
    assert (kernel(tree, "decoder") != kernel(start.params, "decoder")).all()
  assert (kernel(state.params, "decoder") != kernel(state.ema, "decoder")).all()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_gradient_is_made_of_what_is_frozen(accumulate):
  groups = {"encoder": {"pattern": "encoder", "freeze": True}}
  # Tokens that go through the encoder learn by what goes back through it, whatever it does itself.
  free = debug_config(accumulate=accumulate, model__decoder__position="decoder")
  frozen = free | {"optimizer": free["optimizer"] | {"groups": groups}}

  def flops(config, function="train_step"):
    procedure = procedures.from_config(config)
    state = jax.eval_shape(procedure.init)
    batch = experiment.batch_shapes(config)
    if function == "predict":
      return cost.flops(procedure.predict, state.params, state.model_state, batch["image"])
    return cost.flops(procedure.train_step, state, batch)

  # Forward, and twice that back through what learns; micro-batches go forward twice.
  forward = flops(frozen, "predict") * accumulate
  assert forward < flops(frozen) < 1.5 * forward
  assert flops(free) > 1.7 * forward
