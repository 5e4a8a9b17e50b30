"""Exports: the run's model to the bit, for strangers in words and JSON, and nothing by halves."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from conftest import SMALL, debug_config, save_run
from safetensors.numpy import load_file, save_file

import affjax
from affjax import augment, card, checkpoints, contract, export, inference, procedures
from affjax.data import records
from configs import emma, emotion_gcn, temporal, vit_mtl

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A run with task tokens, its weights drawn, and what else a run leaves."""
  where = save_run(tmp_path_factory.mktemp("export") / "run", debug_config(**SMALL))
  tree = {"train": {"va/ccc": 0.5, "expression/f1": 0.25}}
  scores = {"step": 3, "weights": "ema", "data": "synthetic_faces", "scores": tree, "floors": tree}
  (where / "scores.json").write_text(json.dumps(scores))
  start = {
    "command": ["/home/someone/python", "-m", "affjax.main"],
    "git": "abc",
    "devices": ["cpu:0"],
  }
  (where / "starts.jsonl").write_text(json.dumps(start) + "\n{cut sho")
  return where


@pytest.fixture(scope="module")
def folder(run):
  return export.export(run, ("safetensors", "stablehlo"))


@pytest.fixture
def copy(folder, tmp_path):
  """A copy of the export, to be damaged."""
  made = tmp_path / "copy"
  made.mkdir()
  for path in folder.iterdir():
    (made / path.name).write_bytes(path.read_bytes())
  return made


@pytest.fixture
def program(copy):
  """A copy with the program alone."""
  (copy / contract.WEIGHTS).unlink()
  return copy


def pictures(count, size=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def refused(where, says):
  with pytest.raises(ValueError, match=says) as error:
    affjax.load(where)
  assert len(str(error.value).splitlines()) == 1
  assert len(str(error.value)) < 1000
  assert str(where) in str(error.value)


# What an export predicts.


def test_an_export_predicts_what_the_run_does_to_the_bit(run, folder):
  one, other = affjax.load(run), affjax.load(folder)
  images = pictures(11)
  for values, found in zip(one.outputs(images).items(), other.outputs(images).items(), strict=True):
    assert values[0] == found[0]
    np.testing.assert_array_equal(values[1], found[1])
  np.testing.assert_array_equal(one.features(images), other.features(images))
  np.testing.assert_array_equal(one.attention(images).image, other.attention(images).image)
  assert other.step == one.step == 3
  assert other.contract == json.loads(json.dumps(one.contract))
  assert (other.labels, other.postprocess) == (one.labels, one.postprocess)


def test_a_program_predicts_what_the_run_does_whatever_the_batch(run, program):
  one, other = affjax.load(run), affjax.load(program)
  assert other.step == 3
  for count in (1, 3, 8, 70):
    images = pictures(count, seed=count)
    own, found = one.predict(images).columns(), other.predict(images).columns()
    assert list(own) == list(found)
    for name in set(own) - {"expression"}:
      np.testing.assert_allclose(found[name], own[name], atol=1e-6)
    assert own["expression"].tolist() == found["expression"].tolist()


def test_what_a_program_does_not_give_is_said(program):
  for ask in ("features", "attention"):
    with pytest.raises(ValueError, match=f"no {ask}: export with --format=safetensors"):
      getattr(affjax.load(program), ask)(pictures(1))


def test_the_lines_of_the_card_run_with_jax_alone(run, folder, tmp_path):
  blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
  lines = next(block for block in blocks if "jax.export" in block)
  np.save(tmp_path / "images.npy", pictures(3))
  code = (
    "import sys; sys.modules['affjax'] = sys.modules['flax'] = None\n"
    f"{lines}\nnp.savez({str(tmp_path / 'found.npz')!r},"
    f" **program.call(np.load({str(tmp_path / 'images.npy')!r})))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
  )
  assert "'au': (2, 12)" in done.stdout
  own = affjax.load(run)
  with np.load(tmp_path / "found.npz") as found:
    for task, values in own.probabilities(own.outputs(pictures(3))).items():
      np.testing.assert_allclose(found[task], values, atol=1e-6)


def test_the_lines_for_affjax_run_too(folder, tmp_path):
  cv2.imwrite(str(tmp_path / "face.jpg"), pictures(1)[0])
  blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
  lines = next(block for block in blocks if "import affjax" in block)
  given = {".": str(folder), "face.jpg": str(tmp_path / "face.jpg")}
  for name, path in given.items():
    lines = lines.replace(f'"{name}"', repr(path))
  found = {}
  exec(lines, found)
  assert len(found["prediction"]) == 1


def test_a_program_says_nothing_of_the_machine_that_it_is_from(folder):
  content = (folder / contract.STABLEHLO).read_bytes()
  assert str(ROOT).encode() not in content
  assert b"site-packages" not in content


@pytest.mark.slow
@pytest.mark.parametrize(
  "changes",
  [
    {
      "model__decoder__layout": "elementary",
      "model__decoder__position": "decoder",
      "model__decoder__va_activation": "identity",
      "data__image_size": 40,
      "dtype": "bfloat16",
    },
    {
      "model__encoder": {"name": "mobilenet.MobileNet", "depth": 4},
      "model__decoder": {"name": "decoders.Linear"},
    },
  ],
)
def test_models_of_other_kinds_are_programs(changes, tmp_path):
  config = debug_config(**(SMALL | changes))
  state = drawn(config)
  export.write_program(tmp_path, config, state.params, state.model_state)  # compares them
  program = inference.open_program(tmp_path / contract.STABLEHLO)
  size = config["data"]["image_size"]
  assert program.in_avals[0].shape[1:] == (size, size, 3)
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}


def drawn(config):
  rng = np.random.default_rng(0)
  one = lambda path: "scale" in jax.tree_util.keystr(path) or "var" in jax.tree_util.keystr(path)
  shapes = jax.eval_shape(procedures.from_config(config).init)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (one(path) + 0.1 * rng.normal(size=x.shape)).astype(x.dtype), shapes
  )


def clips_config(name):
  config = json.loads(temporal.get_config(f"debug,temporal={name}").to_json_best_effort())
  for task in ("expression", "au"):
    for option in ("logit_adjustment", "positive_weight", "class_weights"):
      config["losses"][task].pop(option, None)
  return config


@pytest.mark.slow
def test_models_of_time_take_clips_and_which_frames_there_are(tmp_path):
  config, where = clips_config("gru"), tmp_path / "run"
  where.mkdir()
  (where / "config.json").write_text(json.dumps(config))
  saved = checkpoints.Checkpoints(where / "checkpoints")
  saved.save(3, drawn(config), {})
  saved.wait()
  saved.close()
  made = export.export(where, ("safetensors", "stablehlo"))
  own, again = affjax.load(where), affjax.load(made)
  (made / contract.WEIGHTS).unlink()
  program = affjax.load(made)
  length = config["data"]["clips"]["length"]
  assert own.contract["input"]["shape"][:2] == own.contract["present"]["shape"] == ["batch", length]
  images = pictures(length + 2, own.image_size)
  frames = np.arange(len(images)) * 2 % 31  # gaps, and not in order
  expected = own.sequence(images, frames)
  for task, values in again.sequence(images, frames).items():
    np.testing.assert_array_equal(values, expected[task])
  pairs = [
    (program.predict(images, frames), own.predict(images, frames)),
    (program.predict(images[:1]), own.predict(images[:1])),
  ]
  for found, told in pairs:
    for column, values in told.columns().items():
      if column != "expression":
        np.testing.assert_allclose(found.columns()[column], values, atol=5e-6)


@pytest.mark.slow
def test_a_transformer_over_time_is_a_program(tmp_path):
  config = clips_config("transformer")
  state = drawn(config)
  export.write_program(tmp_path, config, state.params, state.model_state)  # compares them
  program = inference.open_program(tmp_path / contract.STABLEHLO)
  assert len(program.in_avals) == 2


# What strangers are told.


def test_preprocessing_is_what_the_model_is_given(folder):
  told = json.loads((folder / contract.PREPROCESS).read_text())
  assert told["input"] == {
    "name": "image", "dtype": "uint8", "shape": ["batch", 32, 32, 3], "what": "aligned faces",
  }  # fmt: skip
  image = told["image"]
  how = image["resize"]
  for height, width in ((50, 20), (20, 50), (80, 80)):
    given = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    kind = how["where_height_shrinks"] if height > how["to"][0] else how["else"]
    expected = cv2.resize(
      given, tuple(how["to"][::-1]), interpolation=getattr(cv2, kind.removeprefix("cv2."))
    )
    np.testing.assert_array_equal(records.fit(given, (32, 32)), expected)
  seen = eval(image["scaling_inside_the_model"], {"float32": np.float32, "x": given})
  np.testing.assert_allclose(augment.normalise(jnp.asarray(given)), seen, atol=1e-6)
  assert len(told["face"]["points"]) == 5


def test_labels_say_what_each_output_is(folder):
  told = json.loads((folder / contract.LABELS).read_text())["tasks"]
  assert told["va"]["names"] == ["valence", "arousal"]
  assert told["va"]["range"] == [-1, 1]
  assert told["au"]["meaning"]["AU12"] == "lip corner puller"
  assert told["au"]["threshold"] == dict.fromkeys(told["au"]["names"], 0.5)
  assert set(told["au"]["names"]) <= set(contract.UNITS)
  program = inference.open_program(folder / contract.STABLEHLO)
  found = program.call(pictures(2))
  for task, values in found.items():
    output = told[task]["output"]
    assert (output["name"], values.dtype) == (task, output["dtype"])
    assert list(values.shape[1:]) == output["shape"][1:]
    low, high = told[task]["range"]
    assert (values >= low).all()
    assert (values <= high).all()
  np.testing.assert_allclose(found["expression"].sum(-1), [1, 1], atol=1e-6)


def test_settings_go_with_the_model(run, tmp_path):
  chosen = {"au": {"threshold": {"AU1": 0.125}}, "expression": {"bias": {"fear": 2.0}}}
  (tmp_path / "chosen.json").write_text(json.dumps(chosen))
  made = export.export(run, output=tmp_path / "made", settings=tmp_path / "chosen.json")
  found, own = affjax.load(made), affjax.load(run, settings=tmp_path / "chosen.json")
  assert found.postprocess == own.postprocess
  assert found.postprocess["au"]["threshold"]["AU1"] == 0.125
  told = json.loads((made / contract.LABELS).read_text())["tasks"]
  assert told["expression"]["bias"]["fear"] == 2
  assert "AU1 0.125" in (made / "README.md").read_text()
  told["au"]["threshold"]["AU2"] = 0.75
  (made / contract.LABELS).write_text(json.dumps({"format": 1, "tasks": told}))
  refused(made, "au.threshold is not that of config.json and settings.json")


def test_the_card_has_a_head_that_hubs_read_and_says_what_is_known(folder):
  text = (folder / "README.md").read_text()
  _, head, body = text.split("---\n", 2)
  known = yaml.safe_load(head)
  assert (known["library_name"], known["license"]) == ("affjax", "apache-2.0")
  assert "synthetic_faces" in known["tags"]
  assert "python -m affjax.main" in body
  assert "/home/someone" not in body
  assert re.search(r"va/ccc +0.500 +0.500", body)
  assert re.search(r"time \| unknown", body)
  for title in ("Scores", "Data", "Input", "Outputs", "Use", "Training", "Licence"):
    assert f"\n## {title}\n" in text


def described(config, facts, tmp_path, folder):
  where = tmp_path / "described"
  where.mkdir()
  if facts is not None:
    start = {"initialise": facts, "command": ["python"], "devices": []}
    (where / "starts.jsonl").write_text(json.dumps(start))
  known = affjax_of(folder)
  opened = inference.Predictor(config, known._procedure, *known.arrays)
  return card.text(folder, where, opened, weights="raw", scores={})


affjax_of = functools.cache(affjax.load)


@pytest.mark.parametrize("name", [*card.LICENCES, "something_else"])
@pytest.mark.parametrize("theirs", [None, "MIT", "CC-BY-NC-4.0", ""])
def test_weights_may_be_given_away_only_if_all_that_they_are_made_of_may(
  name, theirs, folder, tmp_path
):
  facts = None if theirs is None else {"licence": theirs, "provenance": "a package"}
  text = described(debug_config(**SMALL, data__name=name), facts, tmp_path, folder)
  known = yaml.safe_load(text.split("---\n", 2)[1])
  free = name == "synthetic_faces" and theirs in (None, "MIT")
  assert (known["license"] == "apache-2.0") == free
  assert ("These weights: unknown" in text) != free
  assert "Code (affjax): Apache-2.0" in text
  if theirs is not None:
    assert f"Initial weights: {theirs or 'unknown'}" in text
    assert "a package" in text


def test_of_several_sources_of_initial_weights_each_has_its_say(folder, tmp_path):
  facts = {"licence": "MIT", "more": [{"licence": "CC-BY-NC-4.0", "provenance": "a laboratory"}]}
  text = described(debug_config(**SMALL), facts, tmp_path, folder)
  assert "- Initial weights: MIT.\n- Initial weights: CC-BY-NC-4.0." in text
  assert "a laboratory" in text
  assert "These weights: unknown" in text


def test_what_a_run_is_made_of_counts_for_those_that_start_from_it(folder, tmp_path):
  run = lambda sets, of=None, **more: dict(
    source="runs/x", step=5, learnt_from=sets, initialise=of, **more
  )
  rendered = run(["synthetic_faces"], run(["synthetic_faces"]))
  config = debug_config(**SMALL)
  text = described(config, rendered, tmp_path, folder)
  assert yaml.safe_load(text.split("---\n", 2)[1])["license"] == "apache-2.0"
  assert "It has seen rendered faces alone" in text
  assert "| initial weights | `x`, a run, step 5 |" in text
  # However far back.
  photographs = run(["synthetic_faces"], run(["ferplus"], {"licence": "MIT"}))
  for number, facts in enumerate((photographs, rendered | {"more": [photographs]})):
    place = tmp_path / str(number)
    place.mkdir()
    text = described(config, facts, place, folder)
    assert "- Data (ferplus):" in text
    assert "- Initial weights: MIT." in text
    assert "These weights: unknown" in text
    assert "rendered faces alone" not in text


def test_a_second_data_set_that_is_learnt_from_has_its_say(folder, tmp_path):
  text = described(debug_config(**SMALL, data__auxiliary={"name": "expw"}), None, tmp_path, folder)
  assert "learnt from `synthetic_faces` and `expw`" in text
  assert "- Data (expw):" in text
  assert "These weights: unknown" in text


def test_every_data_set_that_there_is_has_its_licence():
  assert set(records.names()) <= set(card.LICENCES)


def test_names_of_anybody_stay_text(folder, tmp_path):
  evil = "x`\n---\n## Licence\nfree | <script>"
  config = debug_config(**SMALL, data__name=evil, data__train=evil)
  text = described(config, {"licence": evil}, tmp_path, folder)
  assert text.count("\n## Licence") == 1
  _, head, body = text.split("---\n", 2)
  assert yaml.safe_load(head)["library_name"] == "affjax"
  assert "<script>" not in re.sub(r"`[^`\n]*`", "", body)


def test_scores_of_another_checkpoint_are_left_out(run, tmp_path):
  made = export.export(run, output=tmp_path / "made", weights="raw")
  assert not (made / "scores.json").exists()
  assert "was not scored" in (made / "README.md").read_text()
  raw = affjax.load(run, weights="raw").outputs(pictures(2))
  np.testing.assert_array_equal(affjax.load(made).outputs(pictures(2))["au"], raw["au"])


# Files of anybody's.


def change(arrays, name):
  return {
    "missing": {n: x for n, x in arrays.items() if n != name},
    "one too many": arrays | {"model/ev\nil": np.zeros(2, np.float32)},
    "shape": arrays | {name: arrays[name][..., :1]},
    "type": arrays | {name: arrays[name].astype(np.float64)},
    "not finite": arrays | {name: np.full_like(arrays[name], np.nan)},
  }


@pytest.mark.parametrize(
  ("what", "says"),
  [
    ("missing", "model/decoder/tokens is absent there"),
    ("one too many", r"model/ev\?il is float32 \(2,\) there, absent by config.json; 1 arrays"),
    ("shape", "model/decoder/tokens is float32 .* there, float32 .* by config.json"),
    ("type", "model/decoder/tokens is float64"),
    ("not finite", "model/decoder/tokens holds numbers that are not finite"),
  ],
)
def test_an_array_that_does_not_belong_is_named(copy, what, says):
  path = copy / contract.WEIGHTS
  save_file(change(load_file(path), "model/decoder/tokens")[what], path)
  contract.seal(copy, 3)
  refused(copy, says)


@pytest.mark.parametrize("name", [contract.WEIGHTS, contract.STABLEHLO])
@pytest.mark.parametrize("at", [0, 100, -1, -1000])
def test_a_byte_that_changed_is_noticed(copy, name, at):
  if name == contract.STABLEHLO:
    (copy / contract.WEIGHTS).unlink()
  content = bytearray((copy / name).read_bytes())
  content[at] ^= 1
  (copy / name).write_bytes(content)
  refused(copy, f"{name} is not as it was written")


def test_a_config_that_a_program_has_nothing_to_do_with_is_refused(program):
  path = program / "config.json"
  config = json.loads(path.read_text())
  for section, field in (("data", "config"), ("model", "decoder")):
    left = {name: value for name, value in config[section].items() if name != field}
    path.write_text(json.dumps(config | {section: left}))
    refused(program, "config.json")


@pytest.mark.parametrize(
  ("name", "says"),
  [
    (contract.LABELS, "labels.json cannot be read .No such file"),
    (contract.MANIFEST, "manifest.json cannot be read .No such file"),
    ("config.json", "config.json is missing"),
  ],
)
def test_a_file_that_is_missing_is_named(copy, name, says):
  (copy / name).unlink()
  refused(copy, says)


@pytest.mark.parametrize("name", [contract.LABELS, contract.PREPROCESS, contract.MANIFEST])
@pytest.mark.parametrize(
  "content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": 2}', b'{"format": 1}']
)
def test_a_contract_of_anybody_is_refused(copy, name, content):
  (copy / name).write_bytes(content)
  refused(copy, name)


def test_a_folder_without_any_model_says_so(program):
  (program / contract.STABLEHLO).unlink()
  refused(program, "holds neither weights.safetensors nor model.stablehlo")


def test_what_does_not_go_with_an_export_is_refused(folder):
  with pytest.raises(ValueError, match="is an export, of one checkpoint"):
    affjax.load(folder, "latest")
  with pytest.raises(ValueError, match="is an export: name the run"):
    export.export(folder)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 200, b"\xff" * 200, b"cut short", b"mixed"])
def test_what_is_no_program_is_refused(program, content):
  path = program / contract.STABLEHLO
  whole = path.read_bytes()
  parts = {b"cut short": whole[: len(whole) // 2], b"mixed": whole[:3000] + whole[:-3000]}
  path.write_bytes(parts.get(content, content))
  contract.seal(program, 3)
  refused(program, "is no StableHLO file of jax.export")


def test_a_program_that_calls_what_is_outside_is_refused(program):
  def evil(images):
    shape = jax.ShapeDtypeStruct((), np.float32)
    return jax.ffi.ffi_call("run_anything", shape)(images.astype(np.float32).sum())

  allowed = [jax.export.DisabledSafetyCheck.custom_call("run_anything")]
  made = jax.export.export(jax.jit(evil), disabled_checks=allowed)(
    jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
  )
  (program / contract.STABLEHLO).write_bytes(made.serialize())
  contract.seal(program, 3)
  refused(program, "calls run_anything")


@pytest.mark.parametrize(
  ("model", "shapes"),
  [
    (lambda images: {"va": images.mean((1, 2))[:, :2]}, ["b, 32, 32, 3"]),
    (lambda images: images.sum(), ["b, 32, 32, 3"]),
    (lambda images: sums(images), ["b, 16, 16, 3"]),
    (lambda images: sums(images), ["5, 32, 32, 3"]),
    (lambda images, more: sums(images), ["b, 32, 32, 3", "b, 4"]),
    (lambda: {"va": jnp.zeros((3, 2))}, []),
  ],
)
def test_a_program_that_takes_or_gives_something_else_is_refused(program, model, shapes):
  scope = jax.export.SymbolicScope()
  sizes = [jax.export.symbolic_shape(shape, scope=scope) for shape in shapes]
  taken = [jax.ShapeDtypeStruct(size, np.uint8) for size in sizes]
  made = jax.export.export(jax.jit(model))(*taken)
  (program / contract.STABLEHLO).write_bytes(made.serialize())
  contract.seal(program, 3)
  refused(program, "takes or gives other than config.json says")


def sums(images):
  one = images.astype(np.float32).mean((1, 2, 3))[:, None]
  return {task: one.repeat(n, 1) for task, n in (("va", 2), ("expression", 8), ("au", 12))}


# Writing.


def test_an_export_replaces_an_export_and_nothing_else(run, tmp_path):
  output = tmp_path / "out"
  export.export(run, output=output)
  (output / "left.txt").write_text("of before")
  export.export(run, output=output)
  assert not (output / "left.txt").exists()
  (output / contract.MANIFEST).unlink()
  with pytest.raises(ValueError, match="holds what is no export"):
    export.export(run, output=output)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="is no folder"):
    export.export(run, output=tmp_path / "file")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_what_differs_from_the_run_is_not_kept(run, tmp_path, monkeypatch):
  write = contract.write_weights

  def wrong(path, params, model_state, step):
    write(path, jax.tree.map(lambda x: x * (1 + 1e-4), params), model_state, step)

  monkeypatch.setattr(contract, "write_weights", wrong)
  with pytest.raises(ValueError, match="weights.safetensors: .* is not that of the run"):
    export.export(run, output=tmp_path / "out")
  monkeypatch.undo()
  monkeypatch.setattr(contract, "read_out", lambda outputs, tasks: {t: outputs[t] + 1e-5 * tick()
                                                                    for t in tasks})  # fmt: skip
  ticks = iter(range(100))
  tick = lambda: next(ticks) // 3  # the model that is compared is traced after the program
  with pytest.raises(ValueError, match="model.stablehlo: .* from the run's, at most 1e-06 may be"):
    export.export(run, ("stablehlo",), tmp_path / "out")
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_that_gives_no_numbers_is_refused(tmp_path):
  where = save_run(tmp_path / "run", clips_config("gru"), near=-1)  # variances below zero
  with pytest.raises(ValueError, match="the run's .* is not finite: take another checkpoint"):
    export.export(where)
  assert not (where / "export").exists()


def test_a_full_disk_leaves_what_was_there(run, disk):
  place = disk("size=300k")
  with pytest.raises(SystemExit) as error:
    export.main([f"--checkpoint={run}", f"--output={place / 'out'}"])
  assert re.fullmatch("error: .*No space left on device.*nothing of it is kept.*", str(error.value))
  assert not list(place.iterdir())


def test_the_command_line_says_what_it_wrote_and_what_it_does_not_take(run, tmp_path, capsys):
  export.main([f"--checkpoint={run}", "--format=stablehlo", f"--output={tmp_path / 'out'}"])
  told = capsys.readouterr().out
  assert "model.stablehlo" in told
  assert "weights.safetensors" not in told
  assert "of step 3; tried and equal" in told
  for options, says in (
    (["--format=pickle"], "--format=pickle: use some of safetensors, stablehlo, onnx"),
    (["--format="], "--format=: use some of"),
    (["--which=99"], "no checkpoint '99'"),
    (["--settings=/nowhere.json"], "/nowhere.json: cannot be read as settings"),
  ):
    with pytest.raises(SystemExit) as error:
      export.main([f"--checkpoint={run}", f"--output={tmp_path / 'new'}", *options])
    assert str(error.value).startswith("error: ")
    assert says in str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("module", "argument", "bounds"),
  [
    (vit_mtl, "debug", [-1, 1]),
    (emma, "debug", None),
    (emotion_gcn, "debug", None),  # its head knows no activation
    (emotion_gcn, "debug,head=linear", None),
  ],
)
def test_the_contract_says_whether_valence_and_arousal_have_bounds(module, argument, bounds):
  config = json.loads(module.get_config(argument).to_json_best_effort())
  said = contract.labels(config, contract.decisions(config["labels"], {}))["tasks"]["va"]
  assert said["range"] == bounds
  assert said["activation"] == ("tanh" if bounds else "identity")
