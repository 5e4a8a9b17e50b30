import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from affjax import losses
from affjax.models import affect, decoders

OUTPUTS = {"va": 2, "expression": 8, "au": 12}
SMALL = dict(input_width=24, input_length=9, width=32, num_heads=4)


def tokens(length=9, width=24):
  return jax.random.normal(jax.random.key(0), (3, length, width))


@functools.cache
def small(**options):
  return decoders.TaskTokens(outputs=OUTPUTS, **{**SMALL, **options}, rngs=nnx.Rngs(0))


TASK_TOKENS = dict(name="decoders.TaskTokens", width=32, depth=1, num_heads=4)
LINEAR = dict(name="decoders.Linear")


def model(decoder):
  return affect.AffectModel(
    encoder=dict(name="vit.ViT", variant="mu/8", width=24, depth=1, num_heads=2),
    decoder=decoder,
    outputs=OUTPUTS,
    image_size=16,
    rngs=nnx.Rngs(0),
  )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("input_width", "readout"), [(24, 0), (32, 0), (24, 4)])
def test_every_task_has_its_float32_output(dtype, input_width, readout):
  decoder = small(dtype=dtype, input_width=input_width, readout=readout)
  outputs = jax.jit(lambda x: decoder(x))(10 * tokens(width=input_width).astype(dtype))
  assert {task: x.shape for task, x in outputs.items()} == {k: (3, n) for k, n in OUTPUTS.items()}
  assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}
  assert (jnp.abs(outputs["va"]) < 1).all()


def test_valence_and_arousal_can_be_left_free():
  free = small(va_activation="identity")(tokens())
  np.testing.assert_allclose(jnp.tanh(free["va"]), small()(tokens())["va"], atol=1e-6)


def test_attention_maps_come_on_request_with_rows_that_sum_to_one():
  outputs, maps = small()(tokens(), attention=True)
  assert maps["tokens"].shape == (2, 3, 4, 3, 3)
  assert maps["image"].shape == (2, 3, 4, 3, 9)
  for of_layers in maps.values():
    np.testing.assert_allclose(of_layers.sum(-1), 1, atol=1e-6)
  for task, x in small()(tokens()).items():
    np.testing.assert_array_equal(x, outputs[task])


def test_permuting_tokens_and_heads_permutes_the_outputs():
  decoder = nnx.clone(small())
  order = ("au", "va", "expression")
  decoder.tokens[...] = decoder.tokens[...][jnp.array([2, 0, 1])]
  decoder.position_bias[...] = decoder.position_bias[...][:, :, jnp.array([2, 0, 1])]
  decoder.heads.tasks = order
  outputs = decoder(tokens())
  assert tuple(outputs) == order
  for task, x in small()(tokens()).items():
    np.testing.assert_allclose(outputs[task], x, atol=1e-6)
  # With the heads alone permuted, every task reads the token of another.
  decoder.heads.tasks = tuple(OUTPUTS)
  assert not np.allclose(decoder(tokens())["au"], small()(tokens())["au"], atol=1e-3)


@pytest.mark.parametrize("position_bias", [False, True])
def test_the_order_of_the_image_tokens_matters_to_the_position_bias_alone(position_bias):
  decoder = small(position_bias=position_bias)
  outputs = decoder(tokens())
  for task, x in decoder(tokens()[:, ::-1]).items():
    assert np.allclose(x, outputs[task], atol=1e-6) != position_bias
  for task, x in decoder(tokens()[::-1]).items():
    assert not np.allclose(x, outputs[task], atol=1e-4)


def test_a_readout_starts_each_token_from_all_places_at_once():
  decoder = nnx.clone(small(readout=2, position_bias=False))
  read = decoder.readout(tokens())
  few = np.asarray(tokens() @ decoder.readout.reduce.kernel[...]).reshape(3, 18)
  expected = few @ np.asarray(decoder.readout.dense.kernel[...])
  np.testing.assert_allclose(read, expected.reshape(3, 3, 32), atol=1e-5)
  outputs, mirrored = (decoder(x)["va"] for x in (tokens(), tokens()[:, ::-1]))
  assert not np.allclose(outputs, mirrored, atol=1e-4)


def test_the_linear_decoder_is_mean_pooling_and_one_layer_per_task():
  decoder = decoders.Linear(outputs=OUTPUTS, input_width=24, input_length=9, rngs=nnx.Rngs(0))
  outputs, maps = decoder(tokens(), attention=True)
  assert maps == {}
  pooled = np.array(tokens()).mean(1)
  for task, x in outputs.items():
    expected = pooled @ np.array(decoder.heads.dense[task].kernel)
    expected = np.tanh(expected) if task == "va" else expected
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_dropout_is_off_in_evaluation_and_drawn_from_the_key_in_training():
  decoder = small(dropout_rate=0.5)
  run = lambda seed: decoder(tokens(), train=True, rngs=nnx.Rngs(dropout=seed))["au"]
  np.testing.assert_array_equal(decoder(tokens())["au"], decoder(tokens())["au"])
  np.testing.assert_array_equal(run(0), run(0))
  assert not np.allclose(run(0), run(1), atol=1e-3)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(layout="mixed"), r"layout 'mixed' .* use one of \['task'\]"),
    (dict(va_activation="relu"), r"va_activation 'relu': use one of \['tanh', 'identity'\]"),
    (dict(num_heads=5), "width 32 is not a multiple of num_heads 5"),
  ],
)
def test_impossible_decoders_are_errors_that_say_what_to_change(options, message):
  with pytest.raises(ValueError, match=message):
    small(**options)


@pytest.mark.parametrize("decoder", [TASK_TOKENS, LINEAR], ids=["task tokens", "linear"])
def test_a_model_of_two_sections_trains_every_parameter(decoder):
  graphdef, parameters, rest = nnx.split(model(decoder), nnx.Param, ...)
  parameters, rest = nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)
  assert rest == {}
  images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype(np.float32)

  @jax.jit
  @jax.grad
  def gradient(parameters, labels):
    outputs = nnx.merge(graphdef, parameters, rest)(images)
    return sum(
      losses.mean_squared_error(x, jnp.ones_like(x), jnp.full_like(x, labels[task]))
      for task, x in outputs.items()
    )

  slopes = lambda parameters, labels: jax.device_get(gradient(parameters, labels))
  everything = slopes(parameters, {"va": 1.0, "expression": 1.0, "au": 1.0})
  assert all((x != 0).any() for x in jax.tree.leaves(everything))
  without_au = slopes(parameters, {"va": 1.0, "expression": 1.0, "au": 0.0})
  for task, head in without_au["decoder"]["heads"]["dense"].items():
    assert all((x != 0).any() == (task != "au") for x in jax.tree.leaves(head))
  nothing = slopes(parameters, dict.fromkeys(OUTPUTS, 0.0))
  assert all((x == 0).all() for x in jax.tree.leaves(nothing))


def test_a_model_gives_the_attention_of_both_its_parts():
  whole = model(TASK_TOKENS)
  outputs, maps = jax.jit(lambda x: whole(x, attention=True))(jnp.zeros((1, 16, 16, 3)))
  assert set(outputs) == set(OUTPUTS)
  assert maps["encoder"].shape == (1, 1, 2, 4, 4)
  assert maps["decoder"]["image"].shape == (1, 1, 4, 3, 4)


def test_a_full_size_model_has_a_shape_without_being_allocated():
  abstract = nnx.eval_shape(
    lambda: affect.AffectModel(
      encoder=dict(name="vit.ViT", variant="B/16"),
      decoder=dict(name="decoders.TaskTokens"),
      outputs=OUTPUTS,
      image_size=224,
      dtype="bfloat16",
      rngs=nnx.Rngs(0),
    )
  )
  graphdef, parameters = nnx.split(abstract)
  outputs = jax.eval_shape(
    lambda parameters, images: nnx.merge(graphdef, parameters)(images),
    nnx.to_pure_dict(parameters),
    jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32),
  )
  assert {task: x.shape for task, x in outputs.items()} == {k: (8, n) for k, n in OUTPUTS.items()}


def test_mistakes_in_a_section_name_what_is_allowed():
  with pytest.raises(ValueError, match="affjax.models has no module 'decoder'"):
    model(dict(name="decoder.TaskTokens"))
  with pytest.raises(ValueError, match="decoders has no 'TaskToken'; it has"):
    model(dict(name="decoders.TaskToken"))
