"""What a run takes from another: names, shapes, what is said of it, and that it then is so."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_reference
from conftest import debug_config
from flax import nnx
from safetensors.numpy import save_file

from affjax import checkpoints, experiment, initialise, paths, procedures, sharding, train
from affjax.models import resnet, vgg, vit, weights
from affjax.state import TrainState
from configs import lsd


def state_of(classes=7, value=0.0, ema=None, seed=None):
  """A small state whose arrays all hold a value, or numbers drawn with a seed."""
  rng = np.random.default_rng(seed)
  make = lambda *shape: (
    jnp.full(shape, value) if seed is None else jnp.asarray(rng.normal(size=shape), jnp.float32)
  )
  model = {
    "encoder": {
      "stem": {"kernel": make(3, 2)},
      "blocks": {0: {"kernel": make(2, 2)}, 1: {"kernel": make(2, 2)}},
      "positions": make(1, 4, 2),
    },
    "decoder": {"heads": {"kernel": make(2, classes), "bias": make(classes)}},
  }
  params = {"model": model, "log_variance": {"expression": make()}}
  mean = {"model": {"encoder": {"norm": {"mean": make(2)}}}}
  return TrainState(jnp.int32(0), params, mean, (make(5),), ema)


def flat(tree):
  return {name: np.asarray(x) for name, x in paths.named(tree).items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The folder of a run: at step 5 (the best) all is 5 and its average 6, at step 9 it is 9."""
  where = tmp_path_factory.mktemp("run")
  saved = checkpoints.Checkpoints(where / "checkpoints")
  for step, score in ((5, 1.0), (9, 0.5)):
    saved.save(step, state_of(8, step, state_of(8, step + 1).params), {"seed": 0})
    saved.score(step, score)
  saved.close()
  return where


def read(source, state=None, **section):
  return initialise.read({"source": str(source), **section}, state or state_of())


ENCODER = [
  "model/encoder/blocks/0/kernel",
  "model/encoder/blocks/1/kernel",
  "model/encoder/norm/mean",
  "model/encoder/positions",
  "model/encoder/stem/kernel",
]


def test_what_is_included_is_taken_from_the_average_of_the_best_step(run):
  taken = read(run, include="encoder")
  assert sorted(taken.arrays) == ENCODER
  assert {float(x.max()) for n, x in taken.arrays.items() if "mean" not in n} == {6}
  assert taken.arrays["model/encoder/norm/mean"].tolist() == [5, 5]  # has no average
  assert len(taken.facts.pop("manifest_sha256")) == 64
  assert taken.facts == {"source": str(run), "step": 5, "weights": "ema", "arrays": 5}


def test_what_a_run_has_learnt_from_is_known_of_it_and_of_what_it_started_from(run, tmp_path):
  where = tmp_path / "run"
  shutil.copytree(run, where)
  config = {
    "labels": {},
    "batch_size": 4,
    "data": {"name": "ferplus", "auxiliary": {"name": "expw"}},
  }
  (where / "config.json").write_text(json.dumps(config))
  # What it started from is not known.
  assert "learnt_from" not in read(where, include="encoder").facts
  (where / "starts.jsonl").write_text(json.dumps({"initialise": {"licence": "MIT"}}) + "\n")
  facts = read(where, include="encoder").facts
  assert facts["learnt_from"] == ["ferplus", "expw"]
  assert facts["initialise"] == {"licence": "MIT"}


def test_another_checkpoint_and_weights_as_they_are_can_be_asked_for(run):
  taken = read(run, include="stem", checkpoint="latest", weights="raw")
  assert taken.arrays["model/encoder/stem/kernel"].max() == 9
  assert read(run, include="stem", checkpoint="5", weights="raw").facts["step"] == 5


def test_what_is_excluded_is_not_taken(run):
  taken = read(run, include="encoder", exclude="blocks/0|positions|norm")
  assert sorted(taken.arrays) == [ENCODER[1], ENCODER[4]]


def test_the_report_says_what_is_taken_what_is_random_and_what_is_left(run):
  state = state_of()
  state.params["model"]["decoder"]["tokens"] = jnp.zeros((3, 2))
  report = read(run, state, exclude="heads").report
  assert report.splitlines() == [
    f"start  {run} step 5, ema weights",
    "       taken: 6 of 9 arrays, 25 numbers: log_variance 1, model/encoder 5",
    "       at random, not asked for: 2 arrays: model/decoder 2",
    "       at random, not in the source: 1 arrays: model/decoder 1",
    "       of the source, not used: 2 arrays: model/decoder 2",
  ]


def test_the_state_has_the_arrays_in_its_parameters_its_average_and_its_statistics(run):
  state = state_of(seed=0)
  state = state.replace(ema=jax.tree.map(jnp.copy, state.params))
  arrays = read(run, include="encoder").arrays
  filled = jax.jit(initialise.fill)(state, arrays)
  for tree, before in ((filled.params, state.params), (filled.ema, state.params)):
    for name, leaf in flat(tree).items():
      expected = np.full(leaf.shape, 6) if "encoder" in name else flat(before)[name]
      np.testing.assert_array_equal(leaf, expected, err_msg=name)
  assert flat(filled.model_state)["model/encoder/norm/mean"].tolist() == [5, 5]
  assert (filled.step, filled.opt_state[0].tolist()) == (0, state.opt_state[0].tolist())


def test_a_file_of_arrays_is_read_under_other_names(tmp_path):
  source = {"stem/kernel": np.full((3, 2), 7), "blocks/1/weight": np.full((2, 2), 8.0), "x": [1.0]}
  np.savez(tmp_path / "w.npz", **source)
  rename = [["^(stem|blocks)", r"model/encoder/\1"], ["weight$", "kernel"]]
  taken = read(tmp_path / "w.npz", rename=rename)
  assert sorted(taken.arrays) == [ENCODER[1], ENCODER[4]]
  assert taken.arrays[ENCODER[4]].dtype == np.float32
  assert taken.arrays[ENCODER[4]].max() == 7
  assert sorted(taken.facts) == ["arrays", "sha256", "source"]
  assert "of the source, not used: 1 arrays: x 1" in taken.report


def refuse(match, source, state=None, **section):
  with pytest.raises(ValueError, match=match) as error:
    read(source, state, **section)
  assert "\n" not in str(error.value)


def test_another_shape_is_named_with_both_and_the_way_out(run):
  refuse(
    r"model/decoder/heads/bias is \(8,\) there, \(7,\) here, model/decoder/heads/kernel is"
    r" \(2, 8\) there, \(2, 7\) here: .*exclude='model/decoder/heads/bias|model/decoder/heads/ker",
    run,
  )
  message = re.escape("config.initialise.exclude='model/decoder/heads/bias|model/decoder/heads/ker")
  refuse(message, run)
  assert read(run, exclude="model/decoder/heads/bias|model/decoder/heads/kernel")


def of_heads(names, kind):
  """A state with heads of expressions."""
  heads = {
    "shared": {"shared": {"kernel": jnp.ones((2, 1))}},
    "separate": {"separate": {"kernel": jnp.ones((len(names), 2))}},
    "dense": {"dense": {"expression": {"kernel": jnp.ones((2, len(names)))}}},
  }[kind]
  model = {"encoder": {"stem": {"kernel": jnp.ones((3, 2))}}, "decoder": {"heads": heads}}
  return TrainState(jnp.int32(0), {"model": model}, {}, (), None)


@pytest.mark.parametrize("kind", ["shared", "separate", "dense"])
def test_outputs_of_a_run_are_not_taken_for_other_labels(kind, tmp_path):
  labels = {"expression": ["anger", "fear", "happiness"]}
  saved = checkpoints.Checkpoints(tmp_path / "run" / "checkpoints")
  saved.save(1, of_heads(labels["expression"], kind), {"seed": 0})
  saved.score(1, 1.0)
  saved.close()
  (tmp_path / "run" / "config.json").write_text(json.dumps({"labels": labels}))
  state = of_heads(labels["expression"], kind)
  section = {"source": str(tmp_path / "run")}
  same = initialise.read(section, state, labels=labels)
  assert len(same.arrays) == 2
  turned = {"expression": ["fear", "anger", "happiness"]}
  says = "is anger, fear, happiness, here it is fear, anger, happiness: .*exclude='decoder'"
  with pytest.raises(ValueError, match=says):
    initialise.read(section, state, labels=turned)
  assert len(initialise.read(section | {"exclude": "heads"}, state, labels=turned).arrays) == 1
  # What has not those labels at all takes what fits.
  assert len(initialise.read(section, state, labels={"va": ["valence"]}).arrays) == 2


def test_a_graph_of_other_labels_is_not_taken_and_never_its_edges(tmp_path):
  decoder = {"inner": {"kernel": jnp.ones((3, 4))}, "outer": {"kernel": jnp.ones((4, 2))}}
  edges = {"model": {"decoder": {"adjacency": jnp.ones((2, 2))}}}
  state = TrainState(jnp.int32(0), {"model": {"decoder": decoder}}, edges, (), None)
  saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
  saved.save(1, state, {"seed": 0})
  saved.score(1, 1.0)
  saved.close()
  labels = {"expression": ["anger", "fear"]}
  (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
  section = {"source": str(tmp_path)}
  taken = initialise.read(section, state, labels=labels)
  assert sorted(taken.arrays) == ["model/decoder/inner/kernel", "model/decoder/outer/kernel"]
  with pytest.raises(ValueError, match="here it is fear, anger"):
    initialise.read(section, state, labels={"expression": ["fear", "anger"]})


def test_batch_norms_are_not_folded_where_the_run_has_norms_of_another_kind(tmp_path):
  model = lambda norm: vgg.VGG(
    image_size=32, stages=1, multiplier=0.125, norm=norm, rngs=nnx.Rngs(0)
  )
  normed = nnx.to_pure_dict(nnx.state(model("batch"), (nnx.Param, nnx.BatchStat)))
  np.savez(tmp_path / "w.npz", **paths.named({"model": {"encoder": normed}}))
  taken = read(tmp_path / "w.npz", of_encoder(model("group")))
  kernel = taken.arrays["model/encoder/stem/kernel"]
  np.testing.assert_array_equal(kernel, normed["stem"]["kernel"])
  assert "of the source, not used: 4 arrays" in taken.report
  lost = (
    "warning: statistics of 2 batch norms have no place here, .* such as model/encoder/stem/norm"
  )
  assert re.search(lost, taken.report)
  folded = read(tmp_path / "w.npz", of_encoder(model("none")))
  assert (folded.arrays["model/encoder/stem/kernel"] != kernel).any()


def test_each_network_has_its_norms_folded_or_not_and_by_its_own_epsilon(tmp_path):
  """A second network without norms in its encoder and with norms in its decoder."""
  make = lambda norm: resnet.ResNet(
    image_size=32, depth=18, stages=1, multiplier=0.125, norm=norm, rngs=nnx.Rngs(0)
  )
  rng = np.random.default_rng(0)
  state = nnx.state(make("batch"), (nnx.Param, nnx.BatchStat))
  state = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), state)
  source = nnx.merge(nnx.graphdef(make("batch")), state, nnx.state(make("batch"), nnx.RngState))
  attention = {"kernel": jnp.ones((2, 2)), "norm": {"scale": jnp.ones(2), "mean": jnp.ones(2)}}
  kept = {"prior": {"encoder": nnx.to_pure_dict(state), "decoder": attention}}
  np.savez(tmp_path / "w.npz", **paths.named({"model": kept}))
  model = {"encoder": {"name": "vit.ViT"}, "prior": {"encoder": {"name": "resnet.ResNet"}}}
  own = {"encoder": nnx.to_pure_dict(nnx.state(make("none"), nnx.Param)), "decoder": attention}
  state = TrainState(jnp.int32(0), {"model": {"prior": own}}, {}, (), None)
  taken = initialise.read({"source": str(tmp_path / "w.npz")}, state, model)
  folded = make("none")
  prefix = "model/prior/encoder/"
  weights.fill(folded, {n.removeprefix(prefix): a for n, a in taken.arrays.items() if prefix in n})
  images = jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
  expected = np.asarray(source(images))
  np.testing.assert_allclose(folded(images), expected, atol=1e-5 * np.abs(expected).max())
  assert len(taken.arrays) == len(paths.named(state.params))


def test_what_is_frozen_and_of_no_source_is_warned_of(run):
  group = lambda pattern: {"x": {"pattern": pattern, "freeze": True}}
  optimizer = lambda pattern: dict(name="optim.adamw", learning_rate=1.0, groups=group(pattern))
  section = {"source": str(run), "include": "stem"}
  say = lambda pattern: start(
    {"name": "vit.ViT"}, state_of(), initialise=section, optimizer=optimizer(pattern)
  ).report.splitlines()[-1]
  assert say("encoder") == "       warning: frozen as they are made: 3 arrays: model/encoder 3"
  assert "warning" not in say("stem")


def test_positions_are_resized_to_the_grid_of_this_run(run):
  state = state_of()
  state.params["model"]["encoder"]["positions"] = jnp.zeros((1, 9, 2))
  only = {"include": "positions"}
  taken = read(run, state, **only)
  # All of the source's are 6, so those between them are.
  np.testing.assert_allclose(taken.arrays["model/encoder/positions"], np.full((1, 9, 2), 6), 1e-6)
  assert "resized: model/encoder/positions (1, 4, 2) -> (1, 9, 2)" in taken.report
  # A class token has a position of its own, and 4 patches without one are no 9 with one.
  state.params["model"]["encoder"]["positions"] = jnp.zeros((1, 10, 2))
  refuse(r"positions is \(1, 4, 2\) there, \(1, 10, 2\) here", run, state, **only)


def of_encoder(model):
  """The shapes or arrays of a run whose encoder this is."""
  params = {"model": {"encoder": nnx.to_pure_dict(nnx.state(model, nnx.Param))}}
  return TrainState(jnp.int32(0), params, {}, (), None)


@pytest.mark.parametrize("scan", [False, True])
def test_blocks_are_stacked_or_taken_apart_as_this_run_has_them(scan, tmp_path):
  sizes = dict(image_size=32, variant="mu/16", width=16, depth=3, num_heads=2)
  make = lambda scan: of_encoder(vit.ViT(**sizes, scan=scan, rngs=nnx.Rngs(0)))
  source, target = make(not scan), make(scan)
  np.savez(tmp_path / "w.npz", **paths.named(source.params))
  taken = read(tmp_path / "w.npz", target)
  assert "at random" not in taken.report
  assert "not used" not in taken.report
  # Of the same key both are the same model, and no two blocks of it are alike.
  for name, array in paths.named(target.params).items():
    assert np.asarray(array).tobytes() == taken.arrays[name].tobytes(), name
  kernel = paths.named(make(True).params)["model/encoder/blocks/mlp/expand/kernel"]
  assert len({np.asarray(block).tobytes() for block in kernel}) == 3


def test_so_are_those_of_encoders_that_are_members(tmp_path):
  sizes = dict(variant="mu/16", width=16, depth=2, num_heads=2)
  source = of_encoder(vit.ViT(**sizes, image_size=64, rngs=nnx.Rngs(0)))
  blocks = {"0": {"weight": jnp.ones(3)}, "1": {"weight": jnp.ones(3)}}
  source.params["model"]["decoder"] = {"blocks": blocks}
  np.savez(tmp_path / "w.npz", **paths.named(source.params))
  one, other = (
    of_encoder(vit.ViT(**sizes, image_size=32, scan=scan, rngs=nnx.Rngs(1))).params["model"]
    for scan in (False, True)
  )
  members = {0: one | {"decoder": {"blocks": blocks}}, 1: other | {"decoder": {"blocks": blocks}}}
  state = TrainState(jnp.int32(0), {"model": {"members": members}}, {}, (), None)
  into = lambda i: dict(
    source=str(tmp_path / "w.npz"), rename=(("^model/", f"model/members/{i}/"),)
  )
  taken = initialise.read(into(0) | {"more": {"second": into(1)}}, state)
  # All there is, the blocks of the decoders as they are.
  assert set(taken.arrays) == set(paths.named(state.params))
  assert taken.report.count("resized: ") == 2
  kernels = [
    taken.arrays[f"model/members/0/encoder/blocks/{i}/mlp/expand/kernel"] for i in range(2)
  ]
  stacked = taken.arrays["model/members/1/encoder/blocks/mlp/expand/kernel"]
  np.testing.assert_array_equal(np.stack(kernels), stacked)


@pytest.mark.parametrize("scan", [False, True])
def test_a_file_of_transformers_is_taken_as_the_encoder(scan, tmp_path):
  options, arrays, _ = vit_reference.golden("vit")
  save_file(arrays, tmp_path / "vit.safetensors")
  expected = vit_reference.filled(options, arrays, scan=scan)
  empty = jax.tree.map(jnp.zeros_like, of_encoder(expected))
  taken = read(tmp_path / "vit.safetensors", empty)
  assert "at random" not in taken.report
  assert taken.facts["model"]["gelu"] == "exact"
  for name, array in flat(of_encoder(expected).params).items():
    np.testing.assert_array_equal(taken.arrays[name], array, err_msg=name)


# Weights that have a name.

NEEDS = dict(
  name="vit.ViT", variant="mu/16", width=16, depth=3, num_heads=2, class_token=True, gelu="exact",
  norm_epsilon=1e-12,
)  # fmt: skip
SAID = dict(licence="MIT", data="faces", citation="Me, 2026", source="a friend", sha256="abc")


def imported(folder, arrays, needs, name="some-vit"):
  """Writes what scripts/import_weights.py writes."""
  where = folder / "affjax" / "weights" / f"{name}.safetensors"
  where.parent.mkdir(parents=True)
  save_file(arrays, where, SAID | {"name": name, "model": json.dumps(needs)})
  return where


def vit_of(**changes):
  """A small ViT as its arrays by name and, as the encoder, the state of a run."""
  section = {**NEEDS, **changes}
  section.pop("name")
  model = vit.ViT(image_size=32, **section, rngs=nnx.Rngs(0))
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {"/".join(map(str, k)): np.asarray(v[...]) for k, v in flat}, of_encoder(model)


def start(encoder, state, **fields):
  config = {"model": {"encoder": encoder}, "initialise": {"source": None}, "steps": 1, **fields}
  config = {"optimizer": {"name": "optim.adamw", "learning_rate": 1.0}, **config}
  return initialise.start(config, state)


def test_imported_weights_are_taken_by_their_name_with_licence_and_origin(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  arrays, state = vit_of()
  where = imported(tmp_path, arrays, NEEDS)
  empty = jax.tree.map(jnp.zeros_like, state)
  taken = start(NEEDS, empty, init="some-vit")
  assert "at random" not in taken.report
  assert "warning" not in taken.report
  for name, array in arrays.items():
    np.testing.assert_array_equal(taken.arrays[f"model/encoder/{name}"], array)
  digest = taken.facts.pop("sha256")
  assert len(digest) == 64
  assert taken.facts == {
    "source": str(where), "name": "some-vit", "licence": "MIT", "data": "faces",
    "citation": "Me, 2026", "model": NEEDS, "provenance": "a friend (SHA-256 abc)",
    "arrays": len(arrays),
  }  # fmt: skip
  # The same by its path, and in full.
  assert start(NEEDS, empty, init=str(where)).facts["name"] == "some-vit"
  section = {"source": "some-vit", "include": "stem"}
  assert start(NEEDS, empty, initialise=section).facts["arrays"] == 2
  assert start(NEEDS, empty, initialise=section, init="some-vit").facts["arrays"] == 2
  assert start(NEEDS, empty) is None


def test_an_encoder_that_is_built_otherwise_is_warned_of_by_its_fields(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  arrays, state = vit_of()
  imported(tmp_path, arrays, NEEDS)
  encoder = {k: v for k, v in NEEDS.items() if k not in ("gelu", "norm_epsilon")}
  report = start(encoder | {"num_heads": 4}, state, init="some-vit").report
  assert report.splitlines()[-1].strip() == (
    "warning: these weights need config.model.encoder to have gelu='exact', norm_epsilon=1e-12,"
    " num_heads=2; it has gelu='tanh', norm_epsilon=1e-06, num_heads=4"
  )
  centred = {"name": "mobilenet.MobileNet", "norm": "none", "centre": [0.1, 0.2, 0.3]}
  facts = {"model": centred, "source": "x"}
  same = {"encoder": centred | {"centre": (0.1, 0.2, 0.3)}}
  name = "model/encoder/stem/kernel"
  assert initialise._differences(facts, same, name) == ""
  other = initialise._differences(facts, {"encoder": {"name": "mobilenet.MobileNet"}}, name)
  assert "have centre=[0.1, 0.2, 0.3], norm='none'; it has centre=(0.0, 0.0, 0.0)" in other
  facts["model"] = {"name": "efficientnet.EfficientNet", "norm": ["batch", "none"]}
  differs = lambda **changes: initialise._differences(
    facts, {"encoder": {"name": "efficientnet.EfficientNet", **changes}}, name
  )
  assert differs() == differs(norm="none") == ""
  assert "norm='batch'; it has norm='group'" in differs(norm="group")
  # A second network has an encoder of its own.
  model = {"encoder": {"name": "vit.ViT"}, "prior": {"encoder": {"name": "mobilenet.MobileNet"}}}
  facts["model"] = centred
  with pytest.raises(ValueError, match="config.model.encoder is vit.ViT, x holds weights of mobil"):
    initialise._differences(facts, model, name)
  said = initialise._differences(facts, model, "model/prior/encoder/stem/kernel")
  assert "these weights need config.model.prior.encoder to have centre=[0.1, 0.2, 0.3]" in said


def test_weights_that_are_not_here_of_another_encoder_or_size_are_errors(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  arrays, state = vit_of()
  imported(tmp_path, arrays, NEEDS)
  larger = vit_of(width=32)[1]
  for given, says in (
    ((NEEDS, state, dict(init="faceres-deep")), "import_weights.py faceres-deep$"),
    ((NEEDS, state, dict(init="fceres")), "'fceres' is neither .*imported weights .faceres-deep, "),
    (
      (NEEDS, state, dict(init="some-vit", initialise={"source": "runs/x"})),
      "config.init='some-vit' and config.initialise.source='runs/x': name one source",
    ),
    (
      ({"name": "mobilenet.MobileNet"}, state, dict(init="some-vit")),
      "config.model.encoder is mobilenet.MobileNet, .*some-vit.safetensors holds weights of vit.V",
    ),
    (
      (NEEDS, larger, dict(init="some-vit")),
      r"\(16,\) there, \(32,\) here.*config.model.encoder that it fits: {'name': 'vit.ViT', 'va",
    ),
  ):
    encoder, own, fields = given
    with pytest.raises(ValueError, match=says) as error:
      start(encoder, own, **fields)
    assert "\n" not in str(error.value)


def test_batch_norms_are_folded_where_this_run_has_none(tmp_path):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.uniform(0.5, 2, shape).astype(np.float32)
  source = {"kernel": draw(3, 4), "bias": draw(4)}
  source |= {f"norm/{part}": draw(4) for part in ("scale", "mean", "var")}
  file = tmp_path / "w.npz"
  np.savez(file, **{f"model/encoder/stem/{name}": array for name, array in source.items()})
  tree = lambda *names: {
    "model": {"encoder": {"stem": {n: np.zeros_like(source[n]) for n in names}}}
  }
  without = TrainState(jnp.int32(0), tree("kernel", "bias"), {}, (), None)
  taken = read(file, without).arrays
  x = draw(5, 3)
  there = (x @ source["kernel"] - source["norm/mean"]) / np.sqrt(source["norm/var"] + 1e-3)
  there = there * source["norm/scale"] + source["bias"]
  here = x @ taken["model/encoder/stem/kernel"] + taken["model/encoder/stem/bias"]
  np.testing.assert_allclose(here, there, rtol=1e-5, atol=1e-5)
  # Where it has some, they are taken as they are.
  own = {"kernel": source["kernel"], "bias": source["bias"]}
  params = {"model": {"encoder": {"stem": own | {"norm": {"scale": source["norm/scale"]}}}}}
  kept = {
    "model": {"encoder": {"stem": {"norm": {n: source[f"norm/{n}"] for n in ("mean", "var")}}}}
  }
  taken = read(file, TrainState(jnp.int32(0), params, kept, (), None)).arrays
  for name, array in source.items():
    np.testing.assert_array_equal(taken[f"model/encoder/stem/{name}"], array)


def test_what_cannot_be_taken_is_said_in_one_line(run, tmp_path):
  np.savez(tmp_path / "w.npz", kernel=np.ones((3, 2)), other=np.ones(2))
  npz = tmp_path / "w.npz"
  (tmp_path / "w.txt").write_text("words")
  refuse("source='nowhere' is neither the folder of a run nor a file ", "nowhere")
  refuse("w.txt' is neither the folder of a run nor a file .*npz or", tmp_path / "w.txt")
  refuse("include='encodr/stm' fits no parameter; there are model/enc", run, include="encodr/stm")
  refuse("exclude='hed' fits no parameter; there are", run, exclude="hed")
  refuse("exclude leaves nothing", run, include="stem", exclude="encoder")
  refuse("include='\\(' is no regular expression", run, include="(")
  refuse("weights='averaged': use one of ema, raw", run, weights="averaged")
  refuse("no checkpoint 'first'", run, checkpoint="first")
  refuse("takes no .'from'.; it takes source, ", run, **{"from": "x"})
  refuse("has none of the parameters that are asked for.*it has .*kernel", npz)
  refuse("rename: 'stem' changes no name; there are .*kernel", npz, rename=[["stem", "x"]])
  refuse("rename makes x of both kernel and other", npz, rename=[[".+", "x"]])
  refuse("rename: 'stem' is not a", npz, rename=["stem", "x"])


def test_several_sources_give_parameters_of_their_own(run, tmp_path):
  name = "model/decoder/heads/kernel"
  own = flat(state_of().params)
  kernel = np.full(own[name].shape, 7.0, np.float32)
  np.savez(tmp_path / "w.npz", kernel=kernel)
  heads = dict(
    source=str(tmp_path / "w.npz"), include="heads", rename=[["^", "model/decoder/heads/"]]
  )
  taken = read(run, include="encoder", more={"heads": heads})
  assert (taken.arrays[name] == 7).all()
  encoder = read(run, include="encoder").arrays
  assert set(taken.arrays) == {*encoder, name}
  assert all((taken.arrays[n] == x).all() for n, x in encoder.items())
  assert (taken.facts["arrays"], taken.facts["more"][0]["arrays"]) == (len(encoder), 1)
  assert taken.report.count("start  ") == 2
  # Without the first, the second is all that there is.
  alone = initialise.read({"source": None, "more": {"heads": heads}}, state_of())
  assert set(alone.arrays) == {name}
  assert alone.facts["source"].endswith("w.npz")
  twice = "more.heads takes model/decoder/heads/kernel.*, which config.initialise takes: set"
  refuse(twice, **heads, more={"heads": heads})
  again = "config.initialise.more.heads.include='hed' fits no parameter"
  refuse(again, run, include="encoder", more={"heads": heads | {"include": "hed"}})
  refuse("more.heads takes no .'more'.", run, more={"heads": heads | {"more": {}}})
  refuse("more='heads': use name=dict", run, more="heads")


def test_nothing_asked_for_is_nothing_read():
  assert initialise.read(None, state_of()) is None
  assert initialise.read({"source": None, "include": "typo"}, state_of()) is None


# The loop.

SMALL = {
  "encoder": dict(
    name="vit.ViT", variant="mu/16", stem="patch", width=16, depth=2, num_heads=2,
    layer_scale=0.02, drop_path_rate=0.1,
  ),
  "decoder": dict(name="decoders.TaskTokens", width=16, depth=1, num_heads=2, readout=0),
}  # fmt: skip
SIZES = dict(steps=4, image_size=48, log_every=2)


def shrink(config):
  config["model"] = {"name": "affect.AffectModel", **SMALL}
  config |= SIZES
  config["data"]["image_size"] = 48
  config["checkpoint"]["every"] = 2
  config["evaluate"]["every"] = 4
  config["optimizer"]["warmup_steps"] = 0
  return config


def last(where, config):
  saved = checkpoints.Checkpoints(where / "checkpoints", read_only=True)
  abstract = experiment.abstract_state(procedures.from_config(config), sharding.make_mesh())
  state, _ = saved.restore(saved.latest, abstract)
  saved.close()
  return jax.device_get(state)


@pytest.mark.slow
def test_a_frozen_encoder_of_another_run_stays_as_it_was_to_the_bit(tiny_faces, tmp_path, capsys):
  first, second = tmp_path / "first", tmp_path / "second"
  source = shrink(debug_config())
  train.run(source, first, tiny_faces)
  of_source = last(first, source)

  config = lsd.get_config("debug")
  with config.unlocked():
    config.optimizer.groups = {"encoder": {"pattern": "encoder", "freeze": True}}
  config.initialise.update(source=str(first), checkpoint="latest", include="encoder")
  config = shrink(json.loads(config.to_json_best_effort()))
  config |= {"accumulate": 2, "draw_report": False}
  train.run(config, second, tiny_faces)
  before, after = flat(of_source.ema), last(second, config)
  own = [name for name in before if "encoder" in name]
  assert f"taken: {len(own)} of {len(flat(after.params))} arrays" in capsys.readouterr().out
  start = flat(jax.jit(procedures.from_config(config).init)().params)
  for tree in (flat(after.params), flat(after.ema)):
    for name, x in tree.items():
      if "encoder" in name:
        assert x.tobytes() == before[name].tobytes(), name
      elif name.endswith("kernel"):
        assert (x != start[name]).any(), name
  assert not [name for name in paths.named(after.opt_state) if "encoder/stem" in name]

  # It goes on, without the source.
  shutil.rmtree(first)
  train.run(config, second, tiny_faces)
  assert "taken:" not in capsys.readouterr().out
  fresh, resumed = map(json.loads, (second / "starts.jsonl").read_text().splitlines())
  assert (fresh["initialise"]["source"], fresh["initialise"]["step"]) == (str(first), 4)
  assert "initialise" not in resumed
