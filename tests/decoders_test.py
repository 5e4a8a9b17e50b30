import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import debug_config
from flax import nnx

import affjax
from affjax import evaluate, losses, train
from affjax.models import affect, decoders, layers

OUTPUTS = {"va": 2, "expression": 8, "au": 12}
SMALL = dict(input_width=24, input_length=9, width=32, num_heads=4)
# Every layout with every kind of head that it can have.
HEADS = {
  "elementary": dict(layout="elementary"),
  "elementary, separate": dict(layout="elementary", shared_head=False),
  "mixed": dict(layout="mixed"),
  "mixed, separate": dict(layout="mixed", shared_head=False),
  "task": dict(layout="task"),
}
every_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
every_position = pytest.mark.parametrize("position", ["decoder", "encoder"])


def tokens(length=9, width=24):
  return jax.random.normal(jax.random.key(0), (3, length, width))


@functools.cache
def small(**options):
  return decoders.TaskTokens(outputs=OUTPUTS, **{**SMALL, **options}, rngs=nnx.Rngs(0))


TASK_TOKENS = dict(name="decoders.TaskTokens", width=32, depth=1, num_heads=4)
LINEAR = dict(name="decoders.Linear")
VIT = dict(name="vit.ViT", variant="mu/8", width=24, depth=1, num_heads=2)
MOBILENET = dict(name="mobilenet.MobileNet", multiplier=0.25, depth=2)


def model(decoder, encoder=VIT, outputs=OUTPUTS):
  return affect.AffectModel(
    encoder=encoder, decoder=decoder, outputs=outputs, image_size=16, rngs=nnx.Rngs(0)
  )


def faces(batch=3):
  return np.random.default_rng(0).uniform(-1, 1, (batch, 16, 16, 3)).astype(np.float32)


# What comes out of the flagship's defaults at seed 0: the last two outputs of each of three rows.
GOLDEN = {
  0: {
    "va": (0.00860254, 0.01837882, 0.01328348, -0.10448594, -0.04117552, -0.11994977),
    "expression": (-0.17048705, 0.1907296, -0.0976463, 0.16882084, -0.14627919, 0.04887343),
    "au": (-0.25481254, -0.11615033, -0.11326703, 0.02573485, -0.20796767, -0.08202463),
  },
  4: {
    "va": (0.26264587, 0.23052289, 0.12683815, 0.17846614, 0.11207259, 0.01977391),
    "expression": (-0.07776131, 0.07894169, -0.0106715, -0.12779118, 0.27773941, -0.1112792),
    "au": (-0.19220196, -0.20567285, -0.07351282, -0.02696403, -0.12065871, -0.02239425),
  },
}


@pytest.mark.parametrize("readout", GOLDEN)
def test_runs_from_before_layouts_mean_what_they_meant(readout):
  outputs = small(readout=readout)(tokens())
  for task, expected in GOLDEN[readout].items():
    np.testing.assert_allclose(outputs[task][:, -2:].ravel(), expected, atol=1e-6)


@every_position
@every_head
@pytest.mark.parametrize("tasks", [("va", "expression", "au"), ("expression",), ("au", "va")])
def test_every_combination_gives_every_task_its_outputs(head, position, tasks):
  outputs = {task: OUTPUTS[task] for task in tasks}
  section = TASK_TOKENS | head | dict(position=position, readout=2, heteroscedastic=True)
  whole = nnx.eval_shape(lambda: model(section, outputs=outputs))
  graphdef, parameters = nnx.split(whole)
  shapes, maps = jax.eval_shape(
    lambda parameters: nnx.merge(graphdef, parameters)(faces(), attention=True),
    nnx.to_pure_dict(parameters),
  )
  units = {f"{t}/log_variance": 1 if t == "expression" else n for t, n in outputs.items()}
  assert {name: x.shape[1] for name, x in shapes.items()} == outputs | units
  assert {x.dtype for x in shapes.values()} == {jnp.dtype("float32")}
  split = {"elementary": set(tasks), "mixed": set(tasks) - {"expression"}, "task": set()}
  count = sum(n if task in split[head["layout"]] else 1 for task, n in outputs.items())
  assert maps["decoder"]["tokens"].shape[-2:] == (count, count)
  assert maps["decoder"]["image"].shape[-2:] == (count, 4)
  assert len(whole.decoder.token_names) == count


def test_tokens_are_named_after_what_they_stand_for():
  one_each = tuple(f"{task}/{i}" for task, size in OUTPUTS.items() for i in range(size))
  names = lambda layout: nnx.eval_shape(lambda: small.__wrapped__(layout=layout)).token_names
  assert names("elementary") == one_each
  assert names("mixed") == (*one_each[:2], "expression", *one_each[10:])
  assert names("task") == tuple(OUTPUTS)


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


def permute(decoder, order):
  """Moves all that belongs to one token; what is of a task of several numbers must stay."""
  decoder.tokens[...] = decoder.tokens[...][order]
  decoder.position_logits[...] = decoder.position_logits[...][:, :, order]
  dense = decoder.readout.dense
  for x in (dense.kernel, dense.bias):
    x[...] = x[...].reshape(-1, len(order), 32)[:, order].reshape(x.shape)


def permute_heads(decoder, order):
  for heads in (decoder.heads, decoder.heads.uncertainty):
    for x in (heads.separate.kernel, heads.separate.bias):
      x[...] = x[...][order]


def randomise(module):
  """Gives every parameter random values, also those that start from zeros."""
  leaves = jax.tree.leaves(nnx.state(module, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Param))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  for x, key in zip(leaves, keys, strict=True):
    x[...] = 0.2 * jax.random.normal(key, x.shape)
  return module


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_permuting_tokens_with_all_that_is_theirs_permutes_the_outputs(shared):
  options = dict(heteroscedastic=True, va_activation="identity", readout=2)
  decoder = nnx.clone(small(layout="elementary", shared_head=shared, **options))
  for part in (decoder.readout, decoder.heads):
    nnx.update(part, nnx.state(randomise(part), nnx.Param))
  in_order = lambda: np.concatenate([decoder(tokens())[task] for task in OUTPUTS], 1)
  before, variances = in_order(), decoder(tokens())
  order = np.random.default_rng(0).permutation(22)
  permute(decoder, order)
  if not shared:
    # With their heads left behind, tokens are read by those of others.
    assert not np.allclose(in_order(), before[:, order], atol=1e-3)
    permute_heads(decoder, order)
  np.testing.assert_allclose(in_order(), before[:, order], atol=1e-5)
  assert not np.allclose(in_order(), before, atol=1e-3)
  # Those of va and units, in so far as a task's tokens have stayed within it.
  permute(decoder, np.argsort(order))
  if not shared:
    permute_heads(decoder, np.argsort(order))
  within = np.array([1, 0, *range(9, 1, -1), *range(21, 9, -1)])
  permute(decoder, within)
  if not shared:
    permute_heads(decoder, within)
  for task, x in decoder(tokens()).items():
    expected = variances[task] if task == "expression/log_variance" else variances[task][:, ::-1]
    np.testing.assert_allclose(x, expected, atol=1e-5)


@every_head
def test_the_order_of_the_tasks_is_only_an_order(head):
  first = nnx.clone(small(**head, heteroscedastic=True, readout=2))
  randomise(first.heads)
  reverse = dict(reversed(OUTPUTS.items()))
  second = decoders.TaskTokens(
    outputs=reverse, **SMALL, **head, heteroscedastic=True, readout=2, rngs=nnx.Rngs(0)
  )
  nnx.update(second, nnx.state(first, nnx.Param))
  names = lambda only: [i for i, n in enumerate(first.token_names) if only(n)]
  order = np.array([first.token_names.index(name) for name in second.token_names])
  permute(second, order)
  if first.heads.separate is not None:
    scalar = names(lambda n: "/" in n)
    permute_heads(second, np.array([scalar.index(i) for i in order if i in scalar]))
  assert tuple(second(tokens()))[:3] == tuple(reverse)
  for task, x in first(tokens()).items():
    np.testing.assert_allclose(second(tokens())[task], x, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_tokens_that_are_alike_answer_alike_if_they_share_a_head(shared):
  decoder = nnx.clone(small(layout="elementary", shared_head=shared))
  unit, expression = (decoder.token_names.index(name) for name in ("au/3", "expression/5"))
  decoder.tokens[...] = decoder.tokens[...].at[unit].set(decoder.tokens[...][expression])
  bias = decoder.position_logits[...]
  decoder.position_logits[...] = bias.at[:, :, unit].set(bias[:, :, expression])
  outputs = decoder(tokens())
  assert np.allclose(outputs["au"][:, 3], outputs["expression"][:, 5], atol=1e-6) == shared
  assert not np.allclose(outputs["au"][:, 3], outputs["au"][:, 2], atol=1e-3)


def test_separate_heads_are_a_dense_layer_for_each_token():
  heads = randomise(nnx.clone(small(layout="mixed", shared_head=False).heads))
  x = np.asarray(jax.random.normal(jax.random.key(2), (3, 15, 32)))
  outputs = heads(jnp.asarray(x))
  kernel, bias = np.asarray(heads.separate.kernel), np.asarray(heads.separate.bias)
  scalar = lambda token, row: x[:, token] @ kernel[row] + bias[row]
  np.testing.assert_allclose(outputs["va"][:, 1], np.tanh(scalar(1, 1)), atol=1e-5)
  np.testing.assert_allclose(outputs["au"][:, 7], scalar(3 + 7, 2 + 7), atol=1e-5)
  dense = heads.dense["expression"]
  expected = x[:, 2] @ np.asarray(dense.kernel) + np.asarray(dense.bias)
  np.testing.assert_allclose(outputs["expression"], expected, atol=1e-5)


@every_head
def test_log_variances_start_from_zero_and_leave_the_rest_as_it_is(head):
  outputs = small(**head, heteroscedastic=True)(tokens())
  for task, x in small(**head)(tokens()).items():
    np.testing.assert_array_equal(outputs[task], x)
    assert (outputs[f"{task}/log_variance"] == 0).all()


def test_the_log_variance_of_a_distribution_is_the_mean_over_its_tokens():
  heads = randomise(nnx.clone(small(layout="elementary", heteroscedastic=True).heads))
  x = jax.random.normal(jax.random.key(2), (3, 22, 32))
  layer = heads.uncertainty.shared
  each = np.asarray(x @ layer.kernel[...])[..., 0] + np.asarray(layer.bias)
  outputs = heads(x)
  np.testing.assert_allclose(outputs["va/log_variance"], each[:, :2], atol=1e-5)
  one = each[:, 2:10].mean(1, keepdims=True)
  np.testing.assert_allclose(outputs["expression/log_variance"], one, atol=1e-5)
  np.testing.assert_allclose(outputs["au/log_variance"], each[:, 10:], atol=1e-5)


def test_every_layer_of_the_decoder_looks_at_the_image_as_it_was(monkeypatch):
  seen, call = [], layers.CrossBlock.__call__

  def spy(self, x, context, *args, **options):
    seen.append(context)
    return call(self, x, context, *args, **options)

  monkeypatch.setattr(layers.CrossBlock, "__call__", spy)
  decoder = small(depth=3)
  decoder(tokens())
  assert len(seen) == 3
  for context in seen:
    np.testing.assert_array_equal(context, decoder.project(tokens()))


@every_position
def test_patches_look_at_the_tokens_only_where_these_are_in_the_encoder(position):
  whole = model(TASK_TOKENS | dict(position=position), VIT | dict(depth=2))
  graphdef, parameters = nnx.split(whole)
  parameters = nnx.to_pure_dict(parameters)

  @jax.jit
  def attention(tokens):
    model = nnx.merge(
      graphdef, parameters | {"decoder": parameters["decoder"] | {"tokens": tokens}}
    )
    return model(faces(), attention=True)[1]["encoder"][..., :4, :4]

  tokens = parameters["decoder"]["tokens"]
  unmoved = np.array_equal(attention(tokens), attention(2 * tokens[::-1]))
  assert unmoved == (position == "decoder")


@every_head
def test_tokens_in_the_encoder_share_their_attention_between_image_and_tokens(head):
  whole = model(TASK_TOKENS | head | dict(position="encoder"), VIT | dict(depth=2))
  outputs, maps = whole(faces(), attention=True)
  count = len(whole.decoder.token_names)
  maps, encoder = maps["decoder"], maps["encoder"]
  assert encoder.shape == (2, 3, 2, 4 + count, 4 + count)
  assert maps["tokens"].shape == (2, 3, 2, count, count)
  assert maps["image"].shape == (2, 3, 2, count, 4)
  np.testing.assert_array_equal(maps["image"], encoder[..., 4:, :4])
  np.testing.assert_array_equal(maps["tokens"], encoder[..., 4:, 4:])
  np.testing.assert_allclose(maps["tokens"].sum(-1) + maps["image"].sum(-1), 1, atol=1e-6)
  for task, x in whole(faces()).items():
    np.testing.assert_array_equal(x, outputs[task])


def test_what_goes_to_an_encoders_registers_is_no_part_of_the_maps():
  decoder = nnx.eval_shape(lambda: small.__wrapped__(layout="mixed", position="encoder"))
  maps = np.random.default_rng(0).random((1, 2, 3, 9 + 5 + 15, 9 + 5 + 15))  # 5 registers
  own = decoder.cut(maps)
  np.testing.assert_array_equal(own["image"], maps[..., 14:, :9])
  np.testing.assert_array_equal(own["tokens"], maps[..., 14:, 14:])


def test_heads_in_the_encoder_read_its_tokens_and_the_readout_of_its_patches():
  options = dict(layout="elementary", position="encoder", readout=2)
  whole = model(TASK_TOKENS | options)
  decoder, batch = whole.decoder, faces()
  ridden = whole.encoder(batch, extra=jnp.stack([decoder.tokens[...]] * 3))
  assert ridden.shape == (3, 4 + 22, 24)
  expected = decoder.heads(ridden[:, 4:] + decoder.readout(ridden[:, :4]))
  for task, x in whole(batch).items():
    np.testing.assert_allclose(x, expected[task], atol=1e-6)
  assert set(nnx.to_pure_dict(nnx.state(decoder, nnx.Param))) == {"tokens", "readout", "heads"}


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


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_the_linear_decoder_is_pooling_and_one_layer_per_task(pool):
  sizes = dict(outputs=OUTPUTS, input_width=24, input_length=9)
  decoder = decoders.Linear(**sizes, pool=pool, rngs=nnx.Rngs(0))
  outputs, maps = decoder(tokens(), attention=True)
  assert maps == {}
  pooled = getattr(np.array(tokens()), pool)(1)
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
    (dict(layout="tasks"), r"^layout 'tasks': use one of \['elementary', 'mixed', 'task'\]"),
    (dict(position="vit"), r"^position 'vit': use one of \['decoder', 'encoder'\]"),
    (dict(shared_head=True), "^shared_head=True with layout 'task': .* 'elementary' or 'mixed'"),
    (dict(va_activation="relu"), r"va_activation 'relu': use one of \['tanh', 'identity'\]"),
    (dict(num_heads=5), "width 32 is not a multiple of num_heads 5"),
  ],
)
def test_impossible_decoders_are_errors_that_say_what_to_change(options, message):
  with pytest.raises(ValueError, match=message):
    nnx.eval_shape(lambda: small.__wrapped__(**options))


def own_rows(heads, task):
  """What of the heads' gradients belongs to one task alone."""
  rows = []
  for part in (heads, heads.get("uncertainty", {})):
    rows += jax.tree.leaves(part.get("dense", {}).get(task, {}))
    split = [t for t in OUTPUTS if t not in part.get("dense", {})]
    if "separate" in part and task in split:
      first = sum(OUTPUTS[t] for t in split[: split.index(task)])
      rows += [x[first : first + OUTPUTS[task]] for x in part["separate"].values()]
  return rows


@pytest.mark.parametrize(
  "decoder",
  [
    LINEAR,
    LINEAR | dict(heteroscedastic=True),
    TASK_TOKENS | HEADS["task"],
    TASK_TOKENS | HEADS["mixed, separate"] | dict(heteroscedastic=True),
    TASK_TOKENS | HEADS["elementary"] | dict(position="encoder", heteroscedastic=True),
    TASK_TOKENS | HEADS["elementary, separate"] | dict(position="encoder"),
  ],
  ids=["linear", "linear, log-variances", "task", "mixed", "elementary", "elementary, separate"],
)
def test_a_model_of_two_sections_trains_every_parameter(decoder):
  graphdef, parameters, rest = nnx.split(model(decoder), nnx.Param, ...)
  parameters, rest = nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)
  assert rest == {}

  @jax.jit
  @jax.grad
  def gradient(parameters, labels):
    outputs = nnx.merge(graphdef, parameters, rest)(faces())
    of = lambda name: jnp.full_like(outputs[name], labels[name.partition("/")[0]])
    return sum(
      losses.mean_squared_error(x, jnp.ones_like(x), of(name)) for name, x in outputs.items()
    )

  slopes = lambda parameters, labels: jax.device_get(gradient(parameters, labels))
  everything = slopes(parameters, {"va": 1.0, "expression": 1.0, "au": 1.0})
  assert all((x != 0).any() for x in jax.tree.leaves(everything))
  without_au = slopes(parameters, {"va": 1.0, "expression": 1.0, "au": 0.0})["decoder"]["heads"]
  for task in OUTPUTS:
    own = own_rows(without_au, task)
    assert own or decoder.get("layout") in ("elementary", "mixed")
    assert all((x != 0).any() == (task != "au") for x in own)
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


def test_tokens_need_an_encoder_that_carries_them():
  message = "^position 'encoder' of .* mobilenet.MobileNet carries none .*position=decoder"
  with pytest.raises(ValueError, match=message):
    nnx.eval_shape(lambda: model(TASK_TOKENS | dict(position="encoder"), MOBILENET))
  whole = nnx.eval_shape(lambda: model(TASK_TOKENS, MOBILENET))
  assert whole.decoder.num_extra == 0


@pytest.mark.parametrize(
  ("decoder", "takes"),
  [
    (LINEAR, True),
    (TASK_TOKENS | dict(position_bias=False), True),
    (TASK_TOKENS | dict(position="encoder"), True),
    (TASK_TOKENS, False),
    (TASK_TOKENS | dict(position_bias=False, readout=2), False),
    (TASK_TOKENS | dict(position="encoder", readout=2), False),
    (dict(name="taskwise.TaskwiseTransformer", width=32, num_heads=4), False),
  ],
)
def test_what_knows_patches_by_their_places_takes_none_that_lack_some(decoder, takes):
  # Taken or not, it says so before it meets an image.
  def step():
    rngs = nnx.Rngs(0, dropout=1)
    return model(decoder, VIT | dict(mask_rate=0.5))(faces(), train=True, rngs=rngs)

  if takes:
    assert {task: x.shape[1] for task, x in jax.eval_shape(step).items()} == OUTPUTS
  else:
    message = "^mask_rate 0.5 of vit.ViT: .* by their places.*mask_rate=0, or decoders.Linear"
    with pytest.raises(ValueError, match=message):
      nnx.eval_shape(lambda: model(decoder, VIT | dict(mask_rate=0.5)))


def test_mistakes_in_a_section_name_what_is_allowed():
  with pytest.raises(ValueError, match="affjax.models has no module 'decoder'"):
    model(dict(name="decoder.TaskTokens"))
  with pytest.raises(ValueError, match="decoders has no 'TaskToken'; it has"):
    model(dict(name="decoders.TaskToken"))


@pytest.mark.slow
@pytest.mark.parametrize("position", ["decoder", "encoder"])
def test_a_run_with_other_tokens_is_scored_and_predicts(position, tiny_faces, tmp_path):
  leaves = dict(layout="elementary", position=position, heteroscedastic=True)
  likelihoods = dict(
    va="gaussian_nll",
    expression="heteroscedastic_cross_entropy",
    au="heteroscedastic_binary_cross_entropy",
  )
  config = debug_config(
    steps=4,
    **{f"model__decoder__{leaf}": value for leaf, value in leaves.items()},
    **{f"losses__{task}__name": f"losses.{loss}" for task, loss in likelihoods.items()},
  )
  result = train.run(config, tmp_path, tiny_faces)
  again = evaluate.run(config, tmp_path, tiny_faces, splits=("test",))
  assert again["scores"]["test"] == result["scores"]["test"]
  predictor = affjax.load(str(tmp_path))
  images = np.zeros((2, 112, 112, 3), np.uint8)
  sizes = {name: x.shape for name, x in predictor.outputs(images).items()}
  variances = {"va/log_variance": 2, "expression/log_variance": 1, "au/log_variance": 12}
  assert sizes == {name: (2, size) for name, size in (OUTPUTS | variances).items()}
  prediction = predictor.predict(images)
  assert len(prediction.va) == 2
  assert len(prediction.expression_probability) == 8
  assert len(prediction.au_probability) == 12
