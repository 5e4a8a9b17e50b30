"""What a model takes and gives, as JSON beside its weights, for whoever uses it without affjax.

A folder that `python -m affjax.export` writes holds

  config.json          of the run
  preprocess.json      from a photograph to the model's input
  labels.json          what the outputs are, and how decisions are made of them
  settings.json        what `python -m affjax.calibrate` chose, where it was given
  weights.safetensors  the model in one or more formats, of which a reader needs one
  model.stablehlo
  model.onnx
  manifest.json        of which step these are, their sizes and SHA-256
  scores.json          of the run
  README.md            the model card

The outputs of model.stablehlo and model.onnx are as `read_out` gives them; `Predictor.outputs` has
logits.
"""

import importlib.metadata
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from affjax import build, faces, paths
from affjax.data import clips, records
from affjax.models import weights

FORMAT = 1
PREPROCESS, LABELS, SETTINGS = "preprocess.json", "labels.json", "settings.json"
MANIFEST, CARD = "manifest.json", "README.md"
WEIGHTS, STABLEHLO, ONNX = "weights.safetensors", "model.stablehlo", "model.onnx"
MODELS = (WEIGHTS, STABLEHLO, ONNX)

# Action units by the names that the Facial Action Coding System gives them (Ekman, Friesen & Hager,
# 2002).
UNITS = {
  "AU1": "inner brow raiser", "AU2": "outer brow raiser", "AU4": "brow lowerer",
  "AU5": "upper lid raiser", "AU6": "cheek raiser", "AU7": "lid tightener",
  "AU9": "nose wrinkler", "AU10": "upper lip raiser", "AU11": "nasolabial deepener",
  "AU12": "lip corner puller", "AU13": "sharp lip puller", "AU14": "dimpler",
  "AU15": "lip corner depressor", "AU16": "lower lip depressor", "AU17": "chin raiser",
  "AU18": "lip pucker", "AU20": "lip stretcher", "AU22": "lip funneler", "AU23": "lip tightener",
  "AU24": "lip presser", "AU25": "lips part", "AU26": "jaw drop", "AU27": "mouth stretch",
  "AU28": "lips suck", "AU43": "eye closure",
}  # fmt: skip
_DIMENSIONS = {"valence": "how pleasant", "arousal": "how active"}


def is_temporal(config: Mapping[str, Any]) -> bool:
  """Whether the model of a config is given clips."""
  return bool(config["model"].get("temporal")) and bool(clips.Clips.of(config))


def preprocess(config: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
  """What `preprocess.json` holds: from a photograph to the model's input.

  Args:
    config: of the run.
    shape: of one input: [height, width, 3], or [width] of a run that learnt from features.
  """
  images, size = len(shape) == 3, config["data"]["image_size"]
  one = [size, size, 3] if images else list(shape)
  cut, temporal = clips.Clips.of(config), is_temporal(config)
  crop = faces.crop_of(config) if images else None
  return {
    "format": FORMAT,
    "input": {
      "name": "image",
      "dtype": "uint8" if images else "float32",
      "shape": ["batch", *([cut.length] if temporal else []), *one],
      "what": "aligned faces" if images else "features: `python -m affjax.extract` writes them",
    },
    "present": _present(cut) if temporal else None,
    "image": _image(size, config["image_size"]) if images else None,
    "face": crop.to_json() if crop else None,
  }


def _image(size: int, inner: int) -> dict[str, Any]:
  scaling = "float32(x) / 127.5 - 1"
  if inner != size:
    scaling += f", then resized to {inner} x {inner} (linear, antialiased)"
  return {
    "size": size,
    "channels": "RGB",
    "layout": "NHWC",
    "dtype": "uint8",
    "range": [0, 255],
    "grey": "three equal channels",
    "resize": {
      "to": [size, size],
      "keeps_aspect_ratio": False,
      "where_height_shrinks": "cv2.INTER_AREA",
      "else": "cv2.INTER_LINEAR",
    },
    "scaling_inside_the_model": scaling,
  }


def _present(cut: clips.Clips) -> dict[str, Any]:
  return {
    "name": "present",
    "dtype": "bool",
    "shape": ["batch", cut.length],
    "what": "which frames of a clip there are; what stands where there is none has no influence",
    "frames_apart": cut.step,
    "clips_apart": cut.stride or max(cut.length // 2, 1),
    "overlap": "outputs of a frame that is in several clips are averaged",
  }


def decisions(
  names: Mapping[str, Sequence[str]], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  """Settings of `affjax.calibrate` for the tasks of a model, with what decides by default.

  Args:
    names: task -> labels.
    settings: as `calibrate.read` gives them; {}: the most probable expression, units from 0.5 on.
  """
  found = {task: dict(settings.get(task, {})) for task in names}
  for task, field, default in (("expression", "bias", 0.0), ("au", "threshold", 0.5)):
    if task in found:
      own = found[task].get(field, {})
      found[task][field] = {name: float(own.get(name, default)) for name in names[task]}
  return found


def labels(config: Mapping[str, Any], decided: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """What `labels.json` holds: names, meaning and range of the outputs, and how they are decided on.

  Args:
    config: of the run.
    decided: see `decisions`.
  """
  decoder = config["model"]["decoder"]
  arguments = inspect.signature(build.find(decoder, "affjax.models")).parameters
  default = arguments["va_activation"].default if "va_activation" in arguments else "identity"
  activation = decoder.get("va_activation", default)
  free = activation == "identity"
  meaning = {
    "va": {
      "meaning": {name: _DIMENSIONS.get(name) for name in config["labels"].get("va", ())},
      "range": None if free else [-1, 1],
      "activation": activation,
      "values": "value",
    },
    "expression": {
      "meaning": "which one the face shows; the values of an image sum to 1",
      "range": [0, 1],
      "activation": "softmax",
      "values": "probability",
      "decision": "the largest of log(probability) + bias",
    },
    "au": {
      "meaning": {name: UNITS.get(name) for name in config["labels"].get("au", ())},
      "range": [0, 1],
      "activation": "sigmoid",
      "values": "probability",
      "decision": "on where probability >= threshold",
    },
  }
  time = [clips.Clips.of(config).length] if is_temporal(config) else []
  return {
    "format": FORMAT,
    "tasks": {
      task: {
        "names": list(names),
        **meaning.get(task, {}),
        **decided.get(task, {}),
        "output": {"name": task, "dtype": "float32", "shape": ["batch", *time, len(names)]},
      }
      for task, names in config["labels"].items()
    },
  }


def read_out(outputs: Mapping[str, jax.Array], tasks: Sequence[str]) -> dict[str, jax.Array]:
  """What exported models give, from raw outputs: values of `va`, probabilities of the others.

  Args:
    outputs: task -> [..., size], see `Predictor.outputs`; what else a model gives is left out.
    tasks: names.
  """
  of = {"expression": jax.nn.softmax, "au": jax.nn.sigmoid}
  return {task: of.get(task, lambda x: x)(outputs[task]) for task in tasks}


def write_weights(path: Path, params: Any, model_state: Any, step: int) -> None:
  """Writes what a model predicts with, under the names of `affjax.paths`.

  Args:
    path: file.
    params: nested dicts; what is not the model's, such as the weights of losses, is left out.
    model_state: likewise.
    step: of the checkpoint.
  """
  arrays = {name: np.asarray(leaf) for name, leaf in _of_model(params, model_state).items()}
  facts = {"format": FORMAT, "step": step, "affjax": importlib.metadata.version("affjax")}
  content = safetensors.numpy.save(arrays, {name: str(value) for name, value in facts.items()})
  records.store(path, content)


def read_weights(path: Path, params: Any, model_state: Any) -> tuple[Any, Any]:
  """Reads what `write_weights` wrote, for a model of these shapes.

  Args:
    path: file.
    params: nested dicts of shapes; what is not the model's comes back as it is.
    model_state: likewise.

  Returns:
    Parameters and state as host arrays.

  Raises:
    ValueError: names the file and the array that is missing, too many, of another shape or type, or
      not finite.
  """
  found, own = weights.read(path), _of_model(params, model_state)
  kind = lambda x: (tuple(x.shape), np.dtype(x.dtype).name)
  wrong = [name for name in own if name not in found or kind(found[name]) != kind(own[name])]
  wrong += [name for name in found if name not in own]
  if wrong:
    say = lambda known: "absent" if known is None else "{1} {0}".format(*kind(known))
    first = wrong[0]
    raise ValueError(
      f"{path} is of another model: {_shown(first)} is {say(found.get(first))} there,"
      f" {say(own.get(first))} by config.json; {len(wrong)} arrays differ"
    )
  if bad := [name for name, array in found.items() if not np.isfinite(array).all()]:
    raise ValueError(f"{path}: {bad[0]} holds numbers that are not finite: export the run again")

  def put(tree: Any) -> Any:
    one = lambda path, leaf: found.get(paths.name(path), leaf)
    return jax.tree_util.tree_map_with_path(one, tree)

  return put(params), put(model_state)


def _of_model(params: Any, model_state: Any) -> dict[str, Any]:
  return paths.named({"model": params["model"]}) | paths.named({"model": model_state["model"]})


def _shown(name: str) -> str:
  """A name of anybody's, on one line."""
  return "".join(c if c.isprintable() else "?" for c in name[:120])


def seal(folder: Path, step: int) -> None:
  """Writes the manifest of the models that a folder holds, of the checkpoint of a step."""
  found = {name: records.fingerprint(folder / name) for name in MODELS if (folder / name).is_file()}
  told = {
    "format": FORMAT,
    "step": step,
    "affjax": importlib.metadata.version("affjax"),
    "files": found,
  }
  records.store(folder / MANIFEST, json.dumps(told, indent=1).encode())


def expected(
  config: Mapping[str, Any], settings: Mapping[str, Any], shape: Sequence[int]
) -> dict[str, dict[str, Any]]:
  """What the JSON files of a folder hold by its config: file -> content.

  Args:
    config: of the run.
    settings: of `affjax.calibrate`; {}: none.
    shape: of one input, see `preprocess`.
  """
  decided = decisions(config["labels"], settings)
  return {PREPROCESS: preprocess(config, shape), LABELS: labels(config, decided)}


# Of preprocess.json what cannot be otherwise, and of a task in labels.json.
_OF_MODEL = {"input": ("name", "dtype", "shape"), "present": ("name", "shape"), "image": ("size",)}
_OF_TASK = ("names", "bias", "threshold")


def check(folder: Path, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Holds the JSON files of a folder against its config and its model.

  Args:
    folder: of an export.
    own: what the files should hold, see `expected`. What else they say of preprocessing is theirs.

  Returns:
    What `preprocess.json` holds.

  Raises:
    ValueError: names the file that is missing, of another format, or of another model.
  """
  found = {}
  for name in (PREPROCESS, LABELS):
    found[name] = read_json(folder / name)
    if found[name].get("format") != FORMAT:
      raise ValueError(
        f"{folder / name}: format {_shown(repr(found[name].get('format')))}, this affjax reads"
        f" {FORMAT}: export the run with this affjax"
      )
  for task, right in own[LABELS]["tasks"].items():
    for field in _OF_TASK:
      if _field(_field(found[LABELS].get("tasks"), task), field) != right.get(field):
        raise ValueError(
          f"{folder / LABELS}: {task}.{field} is not that of config.json and {SETTINGS}: export the"
          " run again, with --settings=FILE where other decisions are wanted"
        )
  given = found[PREPROCESS]
  for part, fields in _OF_MODEL.items():
    for field in fields:
      known, right = (_field(tree.get(part), field) for tree in (given, own[PREPROCESS]))
      if known != right:
        raise ValueError(
          f"{folder / PREPROCESS}: {part}.{field} is {_shown(repr(known))}, of the model"
          f" {right!r}: export the run again"
        )
  if not isinstance(given.get("face"), dict | None):
    raise ValueError(f"{folder / PREPROCESS}: face is no object: export the run again")
  return given


def _field(part: Any, name: str) -> Any:
  return part.get(name) if isinstance(part, dict) else None


def check_model(path: Path) -> int:
  """The step that a model is of; ValueError names it unless it is as its manifest says."""
  told = read_json(path.parent / MANIFEST)
  files, step = told.get("files"), told.get("step")
  known = files.get(path.name) if isinstance(files, dict) else None
  if known != records.fingerprint(path) or type(step) is not int:
    raise ValueError(f"{path} is not as it was written ({MANIFEST}): export the run again")
  return step


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object of a folder; ValueError names a file that is missing or holds none."""
  return records.read_json(path, "export the run again")
