"""The multi-task transformer against plain NumPy, PyTorch's layer and numbers typed by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from affjax import losses
from affjax.models import affect, taskwise

OUTPUTS = {"va": 2, "expression": 8, "au": 12}
SMALL = dict(input_width=24, input_length=9, width=32, num_heads=4)
LAYOUTS = ("elementary", "mixed", "task")


def tokens(length=9, width=24):
  return jax.random.normal(jax.random.key(0), (3, length, width))


def small(seed=0, **options):
  """One whose every parameter is drawn, also those that start from zeros or ones."""
  rng = np.random.default_rng(seed)
  model = nnx.eval_shape(
    lambda: taskwise.TaskwiseTransformer(outputs=OUTPUTS, **{**SMALL, **options}, rngs=nnx.Rngs(0))
  )

  def drawn(path, p):
    name = path[-2].key if hasattr(path[-2], "key") else ""
    size = {"scale": 0.1, "bias": 0.1}.get(name, 1 if "tokens" in str(path) else 0.3)
    return jnp.asarray(size * rng.normal(size=p.shape) + (name == "scale"), jnp.float32)

  params = nnx.state(model, nnx.Param)
  nnx.update(model, jax.tree_util.tree_map_with_path(drawn, params))
  return model


@functools.partial(jax.jit, static_argnums=(0, 3))
def compiled(graphdef, params, x, attention):
  return nnx.merge(graphdef, params)(x, attention=attention)


def run(model, x, attention=False):
  return compiled(*nnx.split(model), x, attention)


def arrays(module):
  return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))


# What a block is, in NumPy and in PyTorch.


def dense(p, x):
  return x @ p["kernel"] + p["bias"]


def norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attend(p, x, context, heads, temperature):
  split = lambda y: y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)
  query = split(dense(p["query"], x))
  key, value = map(split, np.split(dense(p["key_value"], context), 2, -1))
  logits = query @ key.swapaxes(2, 3) / (np.sqrt(query.shape[-1]) * temperature)
  maps = special.softmax(logits, -1)
  return dense(p["out"], (maps @ value).transpose(0, 2, 1, 3).reshape(x.shape)), maps


def block(p, x, context, heads=4, temperature=1.0):
  y, maps = attend(p["attention"], x, context, heads, temperature)
  x = norm(p["attention_norm"], x + y)
  y = dense(p["mlp"]["expand"], x)
  y = dense(p["mlp"]["contract"], y * (1 + special.erf(y / np.sqrt(2))) / 2)
  return norm(p["mlp_norm"], x + y), maps


def forward(p, image, temperature):
  """What comes out, by the order of the authors' code; and the maps of the last layer."""
  image = dense(p["project"], image) + p["positions"]
  image, _ = block(p["image_blocks"][0], image, image, temperature=temperature)
  identity = np.eye(22)
  x = np.stack([identity @ p["tokens"]["kernel"] + p["tokens"]["bias"]] * len(image))
  for layer in range(2):
    x, looks = block(p["self_blocks"][layer], x, x, temperature=temperature)
    x, finds = block(p["cross_blocks"][layer], x, image, temperature=temperature)
  y = dense(p["heads"]["shared"], x)[..., 0]
  return {"va": np.tanh(y[:, :2]), "expression": y[:, 2:10], "au": y[:, 10:]}, looks, finds


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_it_is_what_a_plain_forward_pass_gives(temperature):
  model = small(temperature=temperature)
  outputs, maps = run(model, tokens(), attention=True)
  expected, looks, finds = forward(arrays(model), np.asarray(tokens(), np.float64), temperature)
  for task, x in expected.items():
    np.testing.assert_allclose(outputs[task], x, atol=2e-5)
  np.testing.assert_allclose(maps["tokens"][-1], looks, atol=1e-5)
  np.testing.assert_allclose(maps["image"][-1], finds, atol=1e-5)


def test_a_block_is_the_post_norm_layer_of_pytorch():
  torch = pytest.importorskip("torch")
  layer = torch.nn.TransformerEncoderLayer(
    32, 4, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True,
    norm_first=False,
  )  # fmt: skip
  model = small()
  p = arrays(model.image_blocks[0])
  attention, mlp = p["attention"], p["mlp"]
  joined = lambda name, axis: np.concatenate(
    [attention["query"][name], attention["key_value"][name]], axis
  )
  theirs = {
    "self_attn.in_proj_weight": joined("kernel", 1).T,
    "self_attn.in_proj_bias": joined("bias", 0),
  }
  for name, own in (
    ("self_attn.out_proj", attention["out"]),
    ("linear1", mlp["expand"]),
    ("linear2", mlp["contract"]),
  ):
    theirs |= {f"{name}.weight": own["kernel"].T, f"{name}.bias": own["bias"]}
  for name, own in (("norm1", p["attention_norm"]), ("norm2", p["mlp_norm"])):
    theirs |= {f"{name}.weight": own["scale"], f"{name}.bias": own["bias"]}
  layer.load_state_dict({name: torch.tensor(x) for name, x in theirs.items()}, strict=True)
  x = np.asarray(tokens(width=32))
  with torch.no_grad():
    expected = layer.train()(torch.tensor(x)).numpy()  # its fast path is for evaluation
  found, _ = model.image_blocks[0](jnp.asarray(x))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_units_are_dropped_at_four_places_of_a_block():
  one = taskwise.PostBlock(32, 4, dropout_rate=0.5, rngs=nnx.Rngs(0))
  x, rngs = tokens(width=32), nnx.Rngs(dropout=1)
  dropped, _ = one(x, train=True, rngs=rngs)
  assert rngs.dropout.count[...] == 4
  kept, _ = one(x)
  assert not np.allclose(dropped, kept, atol=0.1)
  np.testing.assert_array_equal(kept, one(x)[0])


# Sizes: 12 d^2 + 13 d are in a block, d = 128.
BLOCK = 198_272
COUNTS = {
  # 2,048 channels to 128, 64 positions, a block for them and two for each of two layers, tokens
  # and a bias of their own, heads.
  "elementary": 262_272 + 8192 + 5 * BLOCK + 23 * 128 + 129,
  "mixed": 262_272 + 8192 + 5 * BLOCK + 16 * 128 + 129 + 1032,
  "task": 262_272 + 8192 + 5 * BLOCK + 4 * 128 + 258 + 1032 + 1548,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_has_as_many_numbers_as_its_widths_say(layout):
  model = nnx.eval_shape(
    lambda: taskwise.TaskwiseTransformer(
      outputs=OUTPUTS, input_width=2048, input_length=64, layout=layout, rngs=nnx.Rngs(0)
    )
  )
  count = lambda module: sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))
  assert count(model.self_blocks[0]) == count(model.cross_blocks[1]) == BLOCK
  assert count(model) == COUNTS[layout]
  assert COUNTS["elementary"] == 1_264_897


def test_tokens_and_positions_start_as_wide_as_in_the_authors_code():
  sizes = dict(outputs=OUTPUTS, input_width=64, input_length=64)
  start = jax.jit(
    lambda: nnx.split(taskwise.TaskwiseTransformer(**sizes, rngs=nnx.Rngs(0)))[1].to_pure_dict()
  )()
  assert np.std(start["tokens"]["kernel"]) == pytest.approx(1, rel=0.05)
  assert np.std(start["positions"]) == pytest.approx(0.02, rel=0.05)
  assert not start["tokens"]["bias"].any()


@pytest.mark.parametrize(
  ("layout", "dtype"), [*((x, "float32") for x in LAYOUTS), ("elementary", "bfloat16")]
)
def test_every_layout_gives_every_task_its_float32_outputs_and_maps_whose_rows_sum_to_one(
  layout, dtype
):
  model = small(layout=layout, dtype=dtype, heteroscedastic=True, depth=1)
  outputs, maps = run(model, tokens(), attention=True)
  uncertain = {"va/log_variance": 2, "expression/log_variance": 1, "au/log_variance": 12}
  assert {k: x.shape for k, x in outputs.items()} == {
    k: (3, n) for k, n in (OUTPUTS | uncertain).items()
  }
  assert {x.dtype for x in outputs.values()} == {jnp.dtype("float32")}
  count = {"elementary": 22, "mixed": 15, "task": 3}[layout]
  assert len(model.token_names) == count
  assert maps["tokens"].shape == (1, 3, 4, count, count)
  assert maps["image"].shape == (1, 3, 4, count, 9)
  for x in maps.values():
    np.testing.assert_allclose(x.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("token_attention", [True, False])
def test_without_their_attention_no_token_knows_of_another(token_attention):
  model = small(token_attention=token_attention, depth=1)
  before, maps = run(model, tokens(), attention=True)
  model.tokens.kernel[...] = model.tokens.kernel[...].at[4].add(1.0)
  after, _ = run(model, tokens(), attention=True)
  changed = np.concatenate([np.abs(after[task] - before[task]).max(0) > 1e-6 for task in OUTPUTS])
  assert changed.tolist() == [token_attention or token == 4 for token in range(22)]
  assert set(maps) == ({"tokens", "image"} if token_attention else {"image"})
  assert maps["image"].shape == (1, 3, 4, 22, 9)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_permuting_the_table_with_the_heads_permutes_the_outputs(shared):
  model = small(shared_head=shared, va_activation="identity", depth=1)

  def in_order():
    outputs = run(model, tokens())
    return np.concatenate([outputs[task] for task in OUTPUTS], 1)

  before, order = in_order(), np.random.default_rng(0).permutation(22)
  model.tokens.kernel[...] = model.tokens.kernel[...][order]
  if not shared:
    assert not np.allclose(in_order(), before[:, order], atol=1e-2)
    own = model.heads.separate
    for x in (own.kernel, own.bias):
      x[...] = x[...][order]
  np.testing.assert_allclose(in_order(), before[:, order], atol=1e-4)
  assert not np.allclose(in_order(), before, atol=1e-2)


def test_the_places_of_the_image_are_told_apart_by_their_positions_alone():
  model = small(depth=1)
  outputs, turned = run(model, tokens()), run(model, tokens()[:, ::-1])
  assert not np.allclose(turned["au"], outputs["au"], atol=1e-3)
  model.positions[...] = 0 * model.positions[...]
  outputs, turned = run(model, tokens()), run(model, tokens()[:, ::-1])
  np.testing.assert_allclose(turned["au"], outputs["au"], atol=1e-5)


def objective(params, graphdef, labels, mask):
  """What the flagship minimises, without an encoder."""
  outputs = nnx.merge(graphdef, params["model"])(tokens())
  parts = {
    "va": losses.ccc_loss,
    "expression": functools.partial(losses.cross_entropy, label_smoothing=0.1),
    "au": functools.partial(losses.binary_cross_entropy_and_dice, label_smoothing=0.1),
  }
  found = {task: part(outputs[task], labels[task], mask[task]) for task, part in parts.items()}
  labelled = {task: losses.labelled(mask[task]) for task in parts}
  return losses.uncertainty_weighted(found, labelled, params["log_variance"], "simple")[0]


gradient = jax.jit(jax.grad(objective), static_argnums=1)


@pytest.mark.parametrize("missing", [("va",), ("expression",), ("au",), tuple(OUTPUTS)])
def test_a_task_without_labels_has_exactly_no_gradient(missing):
  rng = np.random.default_rng(0)
  labels = {
    "va": rng.uniform(-1, 1, (3, 2)).astype(np.float32),
    "expression": np.eye(8, dtype=np.float32)[:3],
    "au": rng.integers(0, 2, (3, 12)).astype(np.float32),
  }
  mask = {"va": np.ones((3, 2)), "expression": np.ones(3), "au": np.ones((3, 12))}
  for task in missing:
    labels[task], mask[task] = np.full_like(labels[task], np.nan), 0 * mask[task]
  graphdef, params = nnx.split(small(layout="task", depth=1))
  params = {"model": params, "log_variance": dict.fromkeys(OUTPUTS, jnp.zeros(()))}
  slope = gradient(params, graphdef, labels, mask)
  for task in OUTPUTS:
    own = [slope["log_variance"][task], *jax.tree.leaves(slope["model"]["heads"]["dense"][task])]
    assert all((x == 0).all() for x in own) == (task in missing)
  rest = jax.tree.leaves(slope["model"])
  assert all(np.isfinite(x).all() for x in rest)
  assert any((x != 0).any() for x in rest) == (len(missing) < 3)


def test_it_decodes_any_encoder_that_gives_a_map():
  encoder = dict(name="mobilenet.MobileNet", multiplier=0.25, depth=4, grid=0)
  decoder = dict(name="taskwise.TaskwiseTransformer", width=32, num_heads=4)
  model = nnx.eval_shape(
    lambda: affect.AffectModel(
      encoder=encoder, decoder=decoder, outputs=OUTPUTS, image_size=32, rngs=nnx.Rngs(0)
    )
  )
  assert model.decoder.positions.shape == (16, 32)  # 4 x 4 places of 64 channels
  assert model.decoder.project.kernel.shape == (64, 32)


@pytest.mark.parametrize(
  ("options", "said"),
  [
    (dict(layout="row"), "layout 'row': use one of"),
    (dict(layout="task", shared_head=True), "shared_head=True with layout 'task'"),
    (dict(temperature=0.0), "temperature 0.0: use a number above 0"),
    (dict(num_heads=5), "width 32 is not a multiple of num_heads 5"),
    (dict(image_depth=65), "depth 65: use 0 to 64"),
    (dict(va_activation="relu"), "va_activation 'relu'"),
  ],
)
def test_what_it_cannot_be_is_said_in_one_line(options, said):
  with pytest.raises(ValueError, match=said) as error:
    small(**options)
  assert "\n" not in str(error.value)
