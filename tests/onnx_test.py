"""ONNX files: what ONNX Runtime makes of them is what JAX makes of the model.

Needs the extra `onnx`. Where AFFJAX_ONNX is set, as in CI, its absence is an error.
"""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import debug_config, save_run
from hypothesis import given, settings
from hypothesis import strategies as st

if not os.environ.get("AFFJAX_ONNX"):
  pytest.importorskip("onnx", reason='no onnx: pip install "affjax[onnx]"')
  pytest.importorskip("onnxruntime", reason='no onnxruntime: pip install "affjax[onnx]"')

import onnx
import onnxruntime

import affjax
from affjax import contract, export, onnx_export, onnx_graph, procedures
from affjax.models import convolutions
from configs import temporal

SMALL = dict(
  image_size=32,
  data__image_size=32,
  model__encoder=dict(name="vit.ViT", variant="mu/16", depth=1, stem="residual"),
)
BATCH = jax.export.symbolic_shape("batch")[0]


def pictures(count, size=32):
  return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), np.uint8)


def runtime(model):
  """Named inputs -> named outputs, of a file or what it holds."""
  content = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  names = [output.name for output in session.get_outputs()]
  return lambda **given: dict(zip(names, session.run(None, given), strict=True))


def converted(function, *shapes):
  """A function of arrays whose first size is the batch, converted: its model."""
  shapes = [jax.ShapeDtypeStruct((BATCH, *shape), dtype) for shape, dtype in shapes]
  named = {f"x{i}": shape for i, shape in enumerate(shapes)}
  return onnx_graph.convert(lambda *x: {"y": function(*x)}, named)


def sizes(value):
  return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def operations(model):
  return [node.op_type for node in model.graph.node]


# Compiled in half of the time.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(config):
  """A model's outputs as a function of parameters, state and arrays, and the first two, drawn."""
  procedure = procedures.from_config({**config, "dtype": "float32"})
  rng = np.random.default_rng(0)

  def one(path, leaf):
    positive = any(word in jax.tree_util.keystr(path) for word in ("scale", "var"))
    return (positive + 0.1 * rng.normal(size=leaf.shape)).astype(leaf.dtype)

  state = jax.tree_util.tree_map_with_path(one, jax.eval_shape(procedure.init))
  return procedure.predict, state.params, state.model_state


def fill(folder, config):
  """Writes what an export holds before its ONNX file; gives its model, a function of arrays."""
  model, *arrays = drawn(config)
  size = config["image_size"]
  told = {
    "config.json": config,
    contract.PREPROCESS: contract.preprocess(config, (size, size, 3)),
    contract.LABELS: contract.labels(config, contract.decisions(config["labels"], {})),
  }
  for name, tree in told.items():
    (folder / name).write_text(json.dumps(tree))
  contract.write_weights(folder / contract.WEIGHTS, *arrays, 3)
  contract.seal(folder, 3)
  return functools.partial(model, *arrays)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """What an export with an ONNX file holds, of a run with task tokens that learnt in bfloat16."""
  folder = tmp_path_factory.mktemp("onnx")
  fill(folder, debug_config(**SMALL, dtype="bfloat16"))
  onnx_export.write(folder)
  return folder


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of it without the ONNX file."""
  for path in folder.iterdir():
    if path.name != contract.ONNX:
      (tmp_path / path.name).write_bytes(path.read_bytes())
  return tmp_path


# Of an export.


def test_a_file_gives_what_the_model_gives_in_float32_whatever_the_batch(folder, copy):
  config = json.loads((folder / "config.json").read_text())
  (copy / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
  own = affjax.load(copy)
  images = pictures(8)
  expected = own.probabilities(own.outputs(images))
  given = runtime(folder / contract.ONNX)
  for count in (1, 3, 8, 70):
    rows = np.arange(count) % len(images)
    found = given(image=images[rows])
    assert found.keys() == expected.keys() == {"va", "expression", "au"}
    for task, values in expected.items():
      assert values.std(0).max() > 0.01
      np.testing.assert_allclose(found[task], values[rows], atol=1e-5)


def test_a_file_says_what_it_takes_and_gives(folder):
  model = onnx.load(folder / contract.ONNX)
  onnx.checker.check_model(model, full_check=True)
  tasks = json.loads((folder / contract.LABELS).read_text())["tasks"]
  taken = json.loads((folder / contract.PREPROCESS).read_text())["input"]
  (image,) = model.graph.input
  assert (image.name, sizes(image)) == (taken["name"], taken["shape"])
  assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
  assert {x.name: sizes(x) for x in model.graph.output} == {
    task["output"]["name"]: task["output"]["shape"] for task in tasks.values()
  }
  assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_graph.OPSET)]


def test_a_file_has_its_contract_with_it(folder):
  meta = {p.key: p.value for p in onnx.load(folder / contract.ONNX).metadata_props}
  for name in ("preprocess", "labels"):
    assert json.loads(meta[name]) == json.loads((folder / f"{name}.json").read_text())
  assert meta["step"] == "3"


@pytest.mark.slow
def test_a_run_is_exported_and_the_lines_of_its_card_run_with_onnx_runtime_alone(tmp_path):
  run = save_run(tmp_path / "run", debug_config(**SMALL))
  made = export.export(run, ("onnx",))
  assert not (made / contract.WEIGHTS).exists()
  blocks = re.findall(r"```python\n(.*?)```", (made / "README.md").read_text(), re.S)
  lines = next(block for block in blocks if "onnxruntime" in block)
  code = f"import sys; sys.modules['affjax'] = sys.modules['jax'] = None\n{lines}"
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=made, capture_output=True, text=True, check=True
  )
  assert "'va'" in done.stdout


def test_a_file_that_differs_is_not_written(copy, monkeypatch):
  monkeypatch.setattr(onnx_export, "TOLERANCE", 0)
  before = sorted(copy.iterdir())
  with pytest.raises(ValueError, match=r"model.onnx: .* from the run's, at most 0 may be"):
    onnx_export.write(copy)
  assert sorted(copy.iterdir()) == before


def test_what_another_model_gives_is_seen(folder):
  shape = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), np.uint8)
  content, given = (folder / contract.ONNX).read_bytes(), runtime(folder / contract.ONNX)
  for change, says in ((1e-3, "is 0.001"), (np.nan, "is nan")):

    def model(image, change=change):
      return {n: y + change * (n == "au") for n, y in given(image=image).items()}

    with pytest.raises(ValueError, match=f"au of a batch of 1 {says}"):
      onnx_export.compare(content, model, {"image": shape})
  onnx_export.compare(content, lambda image: given(image=image), {"image": shape})


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(copy, monkeypatch, package):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.delitem(sys.modules, "affjax.onnx_graph", raising=False)
  monkeypatch.delattr(affjax, "onnx_graph", raising=False)
  with pytest.raises(ValueError, match=rf'needs {package}: pip install "affjax\[onnx\]"'):
    onnx_export.write(copy)


# Of every kind of model.

TOKENS = "model__decoder__"
MODELS = {
  "tokens for each number, images of another size": {
    TOKENS + "layout": "elementary",
    "data__image_size": 24,
  },
  "tokens in the decoder; patches, a class token, registers": {
    TOKENS + "layout": "mixed",
    TOKENS + "position": "decoder",
    TOKENS + "depth": 1,
    "model__encoder__stem": "patch",
    "model__encoder__class_token": True,
    "model__encoder__registers": 2,
    "model__encoder__gelu": "exact",
  },
  "a token for each task in the decoder; convolutions, blocks in a loop": {
    TOKENS + "position": "decoder",
    TOKENS + "depth": 1,
    "model__encoder__stem": "conv",
    "model__encoder__depth": 2,
    "model__encoder__scan": True,
  },
  "log variances, blocks that are computed again": {
    TOKENS + "heteroscedastic": True,
    "losses__va": dict(name="losses.gaussian_nll"),
    "model__encoder__remat": True,
  },
}


def check_model(config):
  model, size = functools.partial(*drawn(config)), config["data"]["image_size"]
  inputs = {"image": jax.ShapeDtypeStruct((BATCH, size, size, 3), np.uint8)}
  made = onnx_graph.convert(model, inputs)
  images = pictures(8, size)
  expected, given = quick(model)(images), runtime(made)
  for count in (1, 3, 8):
    found = given(image=images[:count])
    assert found.keys() == expected.keys()
    for name, values in found.items():
      np.testing.assert_allclose(values, expected[name][:count], atol=1e-4, rtol=1e-4)
  return made


@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_of_vision_transformer_is_converted(kind):
  check_model(debug_config(**{**SMALL, **MODELS[kind]}))


def test_the_twin_without_tokens_is_converted():
  check_model(debug_config("debug,plain=true", **SMALL))


@pytest.mark.parametrize("norm", ["group", "none"])
def test_mobilenet_is_converted_with_a_node_for_each_convolution(norm):
  encoder = dict(name="mobilenet.MobileNet", multiplier=0.25, depth=3, grid=3, norm=norm)
  made = check_model(debug_config("debug,plain=true", **SMALL | {"model__encoder": encoder}))
  found = operations(made)
  assert found.count("Conv") == 4  # the stem's, and of each channel alone in three blocks
  assert found.count("Slice") <= 3  # what the heads read


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lite0", "b0"])
def test_efficientnet_is_converted_with_a_node_for_each_convolution(variant):
  encoder = dict(name="efficientnet.EfficientNet", variant=variant, grid=1)
  made = check_model(debug_config("debug,plain=true", **SMALL | {"model__encoder": encoder}))
  assert operations(made).count("Conv") == 1 + 16


@pytest.mark.parametrize("name", ["resnet.ResNet", "vgg.VGG"])
def test_a_network_with_pools_is_converted_with_a_node_for_each(name):
  encoder = dict(name=name, multiplier=0.125)
  made = check_model(debug_config("debug,plain=true", **SMALL | {"model__encoder": encoder}))
  assert operations(made).count("MaxPool") == (5 if "vgg" in name else 1)


def clips_config(kind):
  config = temporal.get_config(f"debug,temporal={kind}")
  config.losses.expression.logit_adjustment = config.losses.au.positive_weight = None
  config.data.image_size = config.image_size = 16
  config.model.encoder.depth, config.data.clips.length = 1, 5
  return json.loads(config.to_json_best_effort())


@pytest.mark.parametrize("kind", ["gru", "transformer"])
def test_a_model_of_clips_looks_at_no_frame_that_is_not_there(kind):
  model = functools.partial(*drawn(clips_config(kind)))
  inputs = {
    "image": jax.ShapeDtypeStruct((BATCH, 5, 16, 16, 3), np.uint8),
    "present": jax.ShapeDtypeStruct((BATCH, 5), bool),
  }
  given = runtime(onnx_graph.convert(model, inputs))
  clips = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
  there = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], bool)
  expected, found = quick(model)(clips, there), given(image=clips, present=there)
  other = given(image=np.where(there[..., None, None, None], clips, 255), present=there)
  for task, values in expected.items():
    assert values.shape == found[task].shape
    np.testing.assert_allclose(found[task][there], values[there], atol=1e-5)
    np.testing.assert_allclose(other[task][there], values[there], atol=1e-5)


@pytest.mark.slow
def test_an_export_of_a_model_of_clips_has_a_file_that_is_told_which_frames_there_are(tmp_path):
  fill(tmp_path, clips_config("gru"))
  onnx_export.write(tmp_path)
  inputs = onnx.load(tmp_path / contract.ONNX).graph.input
  told = json.loads((tmp_path / contract.PREPROCESS).read_text())
  assert [(x.name, sizes(x)) for x in inputs] == [
    (told[part]["name"], told[part]["shape"]) for part in ("input", "present")
  ]


def test_a_model_of_features_is_converted():
  features = dict(name="features.Precomputed", width=7)
  model = functools.partial(*drawn(debug_config("debug,plain=true", model__encoder=features)))
  made = onnx_graph.convert(model, {"image": jax.ShapeDtypeStruct((BATCH, 7), np.float32)})
  vectors = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  for task, values in model(vectors).items():
    np.testing.assert_allclose(runtime(made)(image=vectors)[task], values, atol=1e-5)


# Of operations.

FLOATS, WHOLE = np.float32, np.int32
FUNCTIONS = {
  "parts of an array": lambda x: x[:, 1:5, 3],
  "every other row and column": lambda x: x[:, ::2, 1::2],
  "a row of the last axis": lambda x: x[..., -1],
  "the order of axes": lambda x: x.transpose(2, 0, 1).swapaxes(0, 1),
  "a sum over the first axis inside": lambda x: x.sum(1) - x.max(1) + x.min(1),
  "means and a softmax": lambda x: jax.nn.softmax(x - x.mean(-1, keepdims=True)),
  "powers": lambda x: x**3 + jnp.abs(x) ** 0.5 + 1 / (1 + x**2) + jax.lax.rsqrt(1 + x * x),
  "logarithms": lambda x: jnp.log(1 + jnp.exp(-x)) - jnp.sqrt(jnp.abs(x)) ** 1.7,
  "comparisons": lambda x: sum(
    found.astype(WHOLE) * 2**bit
    for bit, found in enumerate(
      [x > 0, x >= 0, x < 0, x <= 0, x == x, x != 0, ~(x > 1) & (x > -1) | (x > 2)]
    )
  ),
  "an exact GELU": lambda x: jax.nn.gelu(x, approximate=False),
  "a choice": lambda x: jnp.where((x > 0.5) | (x != x), x, -jnp.inf).max(-1),
  "limits": lambda x: jax.lax.clamp(-0.5, x, 0.5),
  "products of batches": lambda x: jnp.einsum("bij,bkj->bik", x, x),
  "a product of all but one": lambda x: jnp.einsum("bij,ij->bi", x, np.ones((6, 5), np.float32)),
  "a product from the left": lambda x: jnp.tensordot(np.ones((4, 6), np.float32), x, (1, 1)),
  "what is broadcast": lambda x: jnp.concatenate(
    [x, jnp.broadcast_to(jnp.arange(5.0), x.shape)], axis=1
  ),
  "what is broadcast from a batch": lambda x: jnp.broadcast_to(x[:, :1], x.shape).reshape(-1, 30),
  "zeros around": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=2.0),
  "parts of a product": lambda x: jnp.split(x, (1, 3), axis=2)[1],
  "no input": lambda x: jnp.zeros((x.shape[0], 3)) + jnp.cumsum(jnp.arange(3.0))[None],
  "whole numbers": lambda x: jax.lax.div((x * 4).astype(WHOLE), WHOLE(3)),
  "a loop backwards": lambda x: jax.lax.scan(
    lambda state, now: (state * 0.5 + now, state), x[:, 0], x.swapaxes(0, 1), reverse=True
  )[1],
  "a loop that gives its end": lambda x: jax.lax.scan(
    lambda state, now: (state * now, None), jnp.ones_like(x[:, 0]), x.swapaxes(0, 1)
  )[0],
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_an_operation_gives_what_it_gives_in_jax(kind):
  function = FUNCTIONS[kind]
  given = runtime(converted(function, ((6, 5), FLOATS)))
  for count in (1, 2, 5):
    x = np.random.default_rng(count).normal(size=(count, 6, 5)).astype(FLOATS)
    with jax.numpy_rank_promotion("allow"):
      expected = np.asarray(function(x))
    found = given(x0=x)["y"]
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "options",
  [
    dict(window_strides=(2, 1), padding="SAME"),
    dict(window_strides=(1, 1), padding=((0, 2), (1, 0)), rhs_dilation=(2, 1)),
    dict(window_strides=(1, 2), padding="VALID", feature_group_count=2),
  ],
)
def test_a_convolution_gives_what_it_gives_in_jax(options):
  rng, groups = np.random.default_rng(0), options.get("feature_group_count", 1)
  kernel = rng.normal(size=(3, 2, 4 // groups, 6)).astype(FLOATS)
  function = lambda x: jax.lax.conv_general_dilated(
    x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
  )
  x = rng.normal(size=(3, 7, 8, 4)).astype(FLOATS)
  found = runtime(converted(function, ((7, 8, 4), FLOATS)))(x0=x)["y"]
  np.testing.assert_allclose(found, function(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
  side=st.integers(1, 3).map(lambda n: 2 * n - 1),
  stride=st.integers(1, 3),
  rows=st.integers(1, 9),
  columns=st.integers(1, 9),
)
def test_shifted_products_are_one_convolution_of_each_channel(side, stride, rows, columns):
  rng = np.random.default_rng(side)
  kernel = rng.normal(size=(side, side, 3)).astype(FLOATS)
  made = converted(
    lambda x: convolutions.depthwise(x, kernel, stride), ((rows, columns, 3), FLOATS)
  )
  x = rng.normal(size=(2, rows, columns, 3)).astype(FLOATS)
  expected = jax.lax.conv_general_dilated(
    *(x, kernel[:, :, None], (stride, stride), "SAME"),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=3,
  )
  np.testing.assert_allclose(runtime(made)(x0=x)["y"], expected, rtol=1e-4, atol=1e-5)
  if side > 1 and rows > stride and columns > stride:
    assert operations(made).count("Conv") == 1
    assert "Add" not in operations(made)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
  side=st.integers(1, 4),
  stride=st.integers(1, 3),
  before=st.integers(0, 2),
  after=st.integers(0, 2),
  size=st.integers(4, 9),
)
def test_maxima_and_sums_of_windows_are_those_of_jax(side, stride, before, after, size):
  pads = [
    (0, 0),
    (min(before, side - 1),) * 2,
    (min(before, side - 1), min(after, side - 1)),
    (0, 0),
  ]
  windows = ((1, side, side, 1), (1, stride, stride, 1), pads)

  def function(x):
    highest = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, *windows)
    return jnp.concatenate([highest, jax.lax.reduce_window(x, 0.0, jax.lax.add, *windows)], axis=-1)

  x = np.random.default_rng(size).normal(size=(3, size, size + 1, 2)).astype(FLOATS)
  made = converted(function, ((size, size + 1, 2), FLOATS))
  np.testing.assert_allclose(runtime(made)(x0=x)["y"], function(x), rtol=1e-5, atol=1e-5)
  assert {"MaxPool", "AveragePool"} <= set(operations(made))


NO_CONVOLUTIONS = {
  "a window is missing": lambda x: x[:, :4, :4] + x[:, :4, 1:5] + x[:, 1:5, :4],
  "a window is there twice": lambda x: x[:, :4, :4] + x[:, :4, :4] + x[:, :4, 1:5],
  "windows of two maps": lambda x: (
    x[:, :4, :4] + x[:, :4, 1:5] + x[:, 1:5, :4] + (2 * x)[:, 1:5, 1:5]
  ),
  "one step is another": lambda x: x[:, :3, :3] + x[:, :3, 1:4] + x[:, 1:4, :3] + x[:, :5:2, :5:2],
  "weights by place": lambda x: x[:, :4, :4] * np.arange(16.0, dtype=FLOATS).reshape(1, 4, 4, 1),
  "a constant is added": lambda x: x[:, :4, :4] + 1.0,
}


@pytest.mark.parametrize("kind", NO_CONVOLUTIONS)
def test_what_is_nearly_a_convolution_is_none(kind):
  function = NO_CONVOLUTIONS[kind]
  made = converted(function, ((5, 5, 2), FLOATS))
  x = np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype(FLOATS)
  with jax.numpy_rank_promotion("allow"):
    np.testing.assert_allclose(runtime(made)(x0=x)["y"], function(x), rtol=1e-5, atol=1e-6)
  assert "Conv" not in operations(made)


def test_a_sum_that_is_a_convolution_may_be_added_to_further():
  kernel = np.ones((3, 3, 2), FLOATS)
  function = lambda x: convolutions.depthwise(x, kernel, 1) + x
  made = converted(function, ((5, 5, 2), FLOATS))
  x = np.random.default_rng(0).normal(size=(3, 5, 5, 2)).astype(FLOATS)
  np.testing.assert_allclose(runtime(made)(x0=x)["y"], function(x), rtol=1e-5, atol=1e-5)
  assert operations(made).count("Conv") == 1


@pytest.mark.parametrize(
  ("function", "says"),
  [
    (lambda x: jnp.sort(x), "sort"),
    (lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2), (1,) * 3, "VALID"), "windows"),
    (lambda x: jnp.flip(x, 1), "rev"),
    (lambda x: jnp.take(np.ones(9, FLOATS), x.astype(WHOLE)[:, 0, 0]), "gather by what depends"),
    (lambda x: x[:, 1:5:2, 3], "gather of other than regular parts"),
    (lambda x: x[:, np.array([0, 1, 3])], "gather of other than regular parts"),
    (lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0))), "pad between"),
    (lambda x: jnp.zeros((x.shape[0] + 1, 2)), "multiples of the batch"),
  ],
)
def test_what_has_no_counterpart_is_named(function, says):
  with pytest.raises(ValueError, match=says):
    converted(function, ((6, 5), FLOATS))


def test_more_weights_than_a_file_may_have_are_refused(copy, monkeypatch):
  monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
  with pytest.raises(ValueError, match="bytes of weights, a file .* 1,000; use safetensors"):
    onnx_export.write(copy)


def test_a_name_that_is_there_twice_makes_no_file():
  shape = jax.ShapeDtypeStruct((BATCH, 2), FLOATS)
  with pytest.raises(ValueError, match="no valid ONNX"):
    onnx_graph.convert(lambda x: {"x": x + 1}, {"x": shape})
