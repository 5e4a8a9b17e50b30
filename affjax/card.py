"""The model card of an export: what the model is, how good, made of what, for whom, and whose.

Markdown with a head in YAML, as model hubs read it. Whatever is not known is said to be unknown.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affjax import build, contract, evaluate, monitor, state, workdir
from affjax.data import paired, records

CODE = "Apache-2.0"
# Data set -> its licence in words, and whether it lets weights that learnt from it be given away.
# From the READMEs in tfds_builders.
LICENCES = {
  "synthetic_faces": ("rendered by affjax from CC0-1.0 assets, by Apache-2.0 code", True),
  "ferplus": (
    "votes MIT; the photographs (FER2013) come from the web, without a grant to redistribute them:"
    " research",
    False,
  ),
  "affectnet": ("given out by its authors under an agreement, for research", False),
  "expw": ("given out by its authors for research, not for commerce", False),
  "raf_db": ("given out by its authors on request, for research", False),
  "raf_au": ("given out by its authors on request, for research", False),
  "image_folder": ("the user's own images: unknown", False),
  **dict.fromkeys(
    ("aff_wild2", "s_aff_wild2", "lsd"),
    ("given out by its authors under a signed agreement, for non-commercial research", False),
  ),
}
# Of initial weights: licences that let what is made of them be given away.
FREE = ("Apache-2.0", "MIT", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0")

_USE = """\
For research on faces, for teaching, and as a start for models of one's own. Aligned faces are what
it has learnt from; give it others, or things that are no faces, and it answers all the same.

- Valence, arousal and expressions are what faces *show*, as annotators or a renderer labelled them.
  They are not what a person feels, and no measurement of it.
- Not for decisions on people: not at work or school, not by police, courts, insurers or doctors.
  Some of these uses are against the law, such as emotion recognition at work and in schools in the
  European Union (Regulation 2024/1689, article 5).
- Errors differ between people: by age, skin, light, pose, glasses, culture. What is not in the
  scores above was not measured.
"""
_RENDERED = """\
- It has seen rendered faces alone. Scores on them say little of photographs: measure on your own.
"""


def text(
  folder: Path,
  where: Path,
  predictor: Any,
  *,
  weights: str,
  scores: Mapping[str, Any],
  data_dir: str | None = None,
) -> str:
  """The card.

  Args:
    folder: of the export, all but the card.
    where: the run's folder.
    predictor: of the run.
    weights: "ema" or "raw".
    scores: as `scores.json` has them; {}: this checkpoint was not scored.
    data_dir: where prepared data lives.
  """
  config, starts = predictor.config, workdir.entries(where / workdir.STARTS)
  first = starts[0] if starts else {}
  sets, others = _made_of(paired.names(config), first.get("initialise"))
  free, licence = _licence(sets, others)
  rendered = sets == ["synthetic_faces"] and not others
  parts = {
    "": _what(predictor, weights),
    "Scores": _scores(scores),
    "Data": _data(config, data_dir),
    "Input": _input(predictor.contract),
    "Outputs": _outputs(contract.read_json(folder / contract.LABELS)["tasks"]),
    "Use": _snippets(folder, predictor.contract),
    "Training": _training(config, starts, workdir.entries(where / monitor.LOG)),
    "Intended use and limits": _USE + _RENDERED * rendered,
    "Licence": licence,
  }
  body = "\n".join(f"## {title}\n{part}" if title else part for title, part in parts.items())
  return f"{_head(config, free)}\n{body}"


def plain(value: Any) -> str:
  """A text of anybody's, on one line and without what Markdown would make of it."""
  text = "".join(c if c.isprintable() else "?" for c in str(value))
  return "".join(f"\\{c}" if c in "\\`|<>[]*_#" else c for c in text)


def _code(value: Any) -> str:
  """The same between backticks, where Markdown makes nothing of anything but these."""
  shown = "".join(c if c.isprintable() and c not in "`|" else "?" for c in str(value))
  return f"`{shown}`"


def _head(config: Mapping[str, Any], free: bool) -> str:
  """What hubs read: YAML, of which JSON is a part."""
  tags = ["jax", "flax", "facial-affect", *config["labels"], *paired.names(config)]
  lines = ["library_name: affjax", f"license: {CODE.lower() if free else 'other'}"]
  if not free:
    lines.append("license_name: see-licence-below")
  lines += ["pipeline_tag: image-classification", f"tags: {json.dumps(tags)}"]
  return "\n".join(["---", *lines, "---"])


def _made_of(
  sets: Sequence[str], initialise: Mapping[str, Any] | None
) -> tuple[list[str], list[Mapping[str, Any]]]:
  """Names of all data sets that weights have learnt from, and what is known of initial weights.

  Initial weights of a run are made of what that run is made of.
  """
  sets, others = list(sets), []
  for source in [initialise, *initialise.get("more", ())] if initialise else ():
    if "learnt_from" in source:
      theirs, further = _made_of(source["learnt_from"], source.get("initialise"))
      sets, others = sets + theirs, others + further
    else:
      others.append(source)
  return list(dict.fromkeys(sets)), others


def _licence(sets: Sequence[str], others: Sequence[Mapping[str, Any]]) -> tuple[bool, str]:
  """Whether weights made of these may be given away as far as is known, and what is known."""
  known = {name: LICENCES.get(name, ("unknown", False)) for name in sets}
  free = all(of_data for _, of_data in known.values())
  lines = [f"- Code (affjax): {CODE}."]
  lines += [f"- Data ({plain(name)}): {licence}." for name, (licence, _) in known.items()]
  for source in others:
    theirs = source.get("licence") or "unknown"
    free = free and theirs in FREE
    lines.append(f"- Initial weights: {plain(theirs)}.")
    for what, key in (("from", "provenance"), ("learnt from", "data")):
      if source.get(key):
        lines.append(f"  They are {what} {plain(source[key])}.")
  verdict = (
    f"nothing that is known keeps them from being given away, under {CODE} for instance"
    if free
    else "unknown. Whether weights that learnt from such data may be given away, and for what they"
    " may be used, is for the owners of the data and of the initial weights to say: ask them first"
  )
  return free, "\n".join([*lines, f"- These weights: {verdict}.", ""])


def _what(predictor: Any, weights: str) -> str:
  config = predictor.config
  average = config["procedure"].get("ema_decay") and weights == "ema"
  number = state.count(predictor.arrays[0]["model"])
  return (
    f"# Facial affect: {', '.join(map(plain, config['labels']))}\n\n"
    f"{_code(build.chain(config['model']))}, {number:,} parameters, learnt from"
    f" {' and '.join(map(_code, paired.names(config)))} by affjax. Step {predictor.step},"
    f" {'moving average of the' if average else 'raw'} weights.\n"
  )


def _scores(scores: Mapping[str, Any]) -> str:
  if not scores:
    return "This checkpoint was not scored: unknown.\n"
  lines = [
    "Floor: the best constant answer. Ceiling: the best that labels of this data allow, where the"
    " data set says it. Probe: a linear model of the pixels.\n"
  ]
  for split in scores["scores"]:
    columns = {kind: scores.get(f"{kind}s", {}).get(split, {}) for kind in _COLUMNS}
    table = evaluate.table(columns, f"{scores['data']} {split}, step {scores['step']}")
    lines.append(f"```\n{table.replace('`', '?')}\n```")
  return "\n".join([*lines, ""])


_COLUMNS = ("score", "floor", "ceiling", "probe")


def _data(config: Mapping[str, Any], data_dir: str | None) -> str:
  data = config["data"]
  version, counts = "unknown", "not prepared here, so unknown"
  try:
    builder = records.builder(data["name"], data["config"], data_dir)
    version = str(builder.version)
    if records.is_prepared(builder):
      told = records.summary(builder)["splits"]
      counts = ", ".join(f"{plain(split)} {of['images']:,}" for split, of in told.items())
  except ValueError:  # it has no builder here, or not any longer
    pass
  splits = f"{_code(data['train'])}, chosen on {_code(data['select'])}"
  report = ", ".join(map(_code, data["report"]))
  view = {name: value for name, value in (data.get("view") or {}).items() if value}
  rows = {
    "name": _code("/".join(filter(None, (data["name"], data["config"])))),
    "version": plain(version),
    "images": counts,
    "learnt from": splits + (f", reported on {report}" if report else ""),
    "labels read with": plain(", ".join(f"{k} {v}" for k, v in view.items())) or "all as they are",
  }
  return _table(rows)


def _table(rows: Mapping[str, str]) -> str:
  return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items()), ""])


def _input(described: Mapping[str, Any]) -> str:
  """preprocess.json in words."""
  given, image, face = described["input"], described["image"], described["face"]
  shape = ", ".join(map(str, given["shape"]))
  lines = [
    f"`{given['name']}`: {given['dtype']} [{shape}], {given['what']}. `preprocess.json` says"
  ]
  lines[0] += " it to programs."
  if image:
    lines.append(
      f"- {image['size']} x {image['size']} pixels, {image['channels']}, rows from the top; others"
      " are resized, without regard to their proportions. Grey: three equal channels."
    )
    lines.append(f"- Scaled inside the model: `{image['scaling_inside_the_model']}`.")
  if face:
    points = zip(face["point_names"], face["points"], strict=True)
    told = ", ".join(f"{name} ({x:.3f}, {y:.3f})" for name, (x, y) in points)
    lines.append(
      f"- Faces are turned, scaled and shifted (least squares) so that, in fractions of the side"
      f" from the upper left corner, there lie: {told} (template {plain(face['template'])})."
      f"{' Colour is taken out.' if face['grey'] else ''}"
    )
  if present := described["present"]:
    lines.append(
      f"- `{present['name']}`: {present['dtype']} [{', '.join(map(str, present['shape']))}],"
      f" {present['what']}. Frames are {present['frames_apart']} apart; {present['overlap']}."
    )
  return "\n".join([*lines, ""])


def _outputs(tasks: Mapping[str, Any]) -> str:
  """labels.json in words."""
  lines = ["| output | names, in order | values | decision |", "| --- | --- | --- | --- |"]
  for task, of in tasks.items():
    span = f"{of['range'][0]} to {of['range'][1]}" if of.get("range") else "any number"
    names = ", ".join(map(plain, of["names"]))
    decision = of.get("decision", "")
    for field in ("threshold", "bias"):
      values = set(of.get(field, {}).values())
      if len(values) > 1:
        told = ", ".join(f"{plain(name)} {value:.3g}" for name, value in of[field].items())
        decision += f" ({field}: {told})"
      elif values and field == "threshold":
        decision += f" ({field} {values.pop():g})"
    lines.append(f"| `{task}` | {names} | {of.get('values', '')}, {span} | {decision} |")
  return "\n".join(
    [*lines, "", "`labels.json` says it to programs, with what each dimension and unit means.", ""]
  )


def _snippets(folder: Path, described: Mapping[str, Any]) -> str:
  """How to use what is in the folder."""
  there = [name for name in contract.MODELS if (folder / name).is_file()]
  images = described["image"] is not None
  parts = []
  if set(there) & {contract.WEIGHTS, contract.STABLEHLO}:
    parts.append(_PYTHON)
    if images:
      parts.append(_SHELL)
  zeros = {
    part["name"]: f"np.zeros({(2, *part['shape'][1:])}, '{part['dtype']}')"
    for part in (described["input"], described["present"])
    if part
  }
  if contract.STABLEHLO in there:
    parts.append(_JAX.format(file=contract.STABLEHLO, given=", ".join(zeros.values())))
  if contract.ONNX in there:
    given = ", ".join(f"'{name}': {array}" for name, array in zeros.items())
    parts.append(_ONNX.format(file=contract.ONNX, given=given))
  return "\n".join(parts)


_PYTHON = """\
```python
import affjax

predictor = affjax.load(".")  # this folder
prediction = predictor.predict(["face.jpg"])  # aligned faces: paths, or uint8 RGB arrays
print(prediction)
```
"""
_SHELL = """\
```bash
python -m affjax.predict --checkpoint=. --input=photographs --output=out.csv  # finds the faces, too
```
"""
_JAX = """\
With JAX alone (`pip install jax flatbuffers`):

```python
import jax.export
import numpy as np

program = jax.export.deserialize(bytearray(open("{file}", "rb").read()))
outputs = program.call({given})  # any number of inputs
print({{task: values.shape for task, values in outputs.items()}})
```
"""
_ONNX = """\
With ONNX Runtime alone:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
values = session.run(None, {{{given}}})  # any number of inputs
print(dict(zip([output.name for output in session.get_outputs()], values)))
```
"""


def _training(
  config: Mapping[str, Any], starts: Sequence[Mapping[str, Any]], log: Sequence[Mapping[str, Any]]
) -> str:
  """What it took, from what the run wrote down."""
  first = starts[0] if starts else {}
  # The path of Python says nothing of the run.
  command = " ".join(["python", *map(str, first.get("command", [])[1:])]) if first else ""
  devices = sorted({str(d).partition(":")[0] for start in starts for d in start.get("devices", ())})
  count = max((len(start.get("devices", ())) for start in starts), default=0)
  versions = ", ".join(f"{name} {version}" for name, version in first.get("versions", {}).items())
  speeds = sorted(line["images_per_second"] for line in log if "images_per_second" in line)
  rows = {
    "command": _code(command) if command else "unknown",
    "hardware": plain(f"{count} x {', '.join(devices)}") if devices else "unknown",
    "time": _time([line["seconds"] for line in log if line.get("kind") == "time"]),
    "images/s": f"{speeds[len(speeds) // 2]:,.0f} (median)" if speeds else "unknown",
    "steps": f"{config['steps']:,} of {config.get('batch_size', 'unknown')} images",
    "git commit": _code(first.get("git") or "unknown"),
    "versions": plain(versions) or "unknown",
    "initial weights": _initial(first),
  }
  return _table(rows)


def _initial(start: Mapping[str, Any]) -> str:
  """What a run started from: of other runs their folders, of the rest the licence says it."""
  if not start:
    return "see Licence"
  first = start.get("initialise")
  said = [
    f"{_code(Path(of['source']).name)}, a run, step {of['step']}"
    if "learnt_from" in of
    else "see Licence"
    for of in ([first, *first.get("more", ())] if first else ())
  ]
  return "; ".join(dict.fromkeys(said)) or "random"


def _time(seconds: Sequence[float]) -> str:
  """Of each start that ended well."""
  total = sum(seconds)
  text = f"{total / 3600:.1f} hours" if total > 5400 else f"{total / 60:.1f} minutes"
  return (text + f" in {len(seconds)} starts" * (len(seconds) > 1)) if seconds else "unknown"
