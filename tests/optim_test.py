import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from affjax import optim

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
  transform, _ = optim.adamw(
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
  transform, _ = optim.adamw(
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
  clipped, _ = optim.adamw(**options, clip_norm=1.0)
  free, _ = optim.adamw(**options, clip_norm=0.0)
  norm_of_ones = np.sqrt(6 + 3 + 3 + 12 + 9 + 1)
  got = run(clipped, [0.01, 50.0, -0.02])
  np.testing.assert_allclose(got, run(free, [0.01, 1 / norm_of_ones, -0.02]), rtol=1e-5)
  assert np.abs(got - run(free, [0.01, 50.0, -0.02])).max() > 1e-3


def test_the_schedule_that_is_returned_is_the_one_that_is_applied():
  transform, rate = optim.adamw(
    steps=10, learning_rate=0.1, warmup_steps=5, weight_decay=0.0, clip_norm=0.0
  )
  state, params = transform.init(PARAMS), PARAMS
  for step in range(8):
    updates, state = transform.update(like(1.0), state, params)
    # Adam's step is 1 where all gradients are equal.
    np.testing.assert_allclose(updates["encoder"]["bias"], -rate(step), rtol=1e-4, atol=1e-9)
