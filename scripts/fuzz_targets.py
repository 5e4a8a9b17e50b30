"""What `scripts/fuzz.py` feeds: a seed corpus and a contract for each reader.

A reader gives for any input either a value that is what the input says, or a ValueError of one
line that names the file. A target is a function that is given a folder of its own and returns valid
inputs and a check. The check returns what the reader refused the input with, "" where it took it,
and raises where the contract is broken.
"""

import contextlib
import csv
import dataclasses
import gc
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.fuzz_mutations import END, NAME_END

Check = Callable[[bytes], str]
Start = Callable[[Path], tuple[list[bytes], Check]]


class Broken(Exception):
  """A reader did not keep its contract."""


def need(condition: Any, what: str) -> None:
  """Raises Broken with this text unless the condition holds."""
  if not condition:
    raise Broken(what)


class Refusal:
  """What a reader said, "" if nothing."""

  text = ""


@contextlib.contextmanager
def refusing(
  *names: str | Path, numbered: int = 0, shown_by_main: bool = False
) -> Iterator[Refusal]:
  """Takes a ValueError as an answer if it is one printable line that has all the names in it.

  Args:
    *names: such as the path of the file.
    numbered: where above 0: after the first name comes `:NUMBER:`, of a line up to this one.
    shown_by_main: the text may hold what cannot be printed: `affjax.main` makes one line of it.
  """
  said = Refusal()
  try:
    yield said
  except ValueError as e:
    said.text = str(e) or "nothing"
    need(shown_by_main or said.text.isprintable(), f"not one line of text: {e!r}"[:300])
    need(all(str(name) in said.text for name in names), f"names no file: {e!r}"[:300])
    if numbered:
      line = re.match(rf"{re.escape(str(names[0]))}:(\d+): ", said.text)
      need(line and 1 <= int(line[1]) <= numbered, f"names no line: {e!r}"[:300])


# Annotations and submissions.


def _rows(task: str, header: str, count: int, seed: int = 0) -> Any:
  """Random rows of a format: of `v1` where it is a per-video file, else of two videos or of LSD."""
  from affjax import annotations

  rng = np.random.default_rng(seed)
  form = next(f for f in annotations.FORMATS[task] if f.header == header)
  videos = annotations.frames("v1", count - count // 3) + annotations.frames("v-2", count // 3)
  images = {"": annotations.frames("v1", count), "frame": videos}.get(
    form.image, [f"{k}.jpg" for k in range(count)]
  )
  lowest = -1 if form.marked else 0
  va = np.round(rng.uniform(-1, 1, (count, 2)), 3)
  va[rng.random((count, 2)) < 0.2 * form.marked] = np.nan
  return annotations.Annotations(
    images=tuple(images),
    va=va if form.va else None,
    expression=rng.integers(lowest, len(form.classes), count) if form.classes else None,
    au=rng.integers(lowest, 2, (count, len(form.units))) if form.units else None,
    classes=form.classes,
    units=form.units,
  )


def _written(folder: Path, task: str, header: str, count: int = 5) -> bytes:
  from affjax import annotations

  file = folder / "v1.txt"
  annotations.write(file, task, _rows(task, header, count), header)
  content = file.read_bytes()
  file.unlink()
  return content


def _numbers(read: Any) -> np.ndarray:
  """[rows, fields] what the lines of a file say, with its markers."""
  va = [] if read.va is None else [np.nan_to_num(read.va, nan=-5)]
  one = [] if read.expression is None else [read.expression[:, None]]
  return np.concatenate([*va, *one, *([] if read.au is None else [read.au])], axis=1)


def _header(content: bytes) -> str:
  first = content.partition(b"\n")[0].decode(errors="replace")
  return first.removeprefix("\ufeff").removesuffix("\r")


def _data_lines(content: bytes) -> list[str]:
  lines = content.decode().split("\n")[1:]
  return [line.removesuffix("\r") for line in lines if line.removesuffix("\r")]


def _check_rows(read: Any, content: bytes, predictions: bool) -> None:
  """That the rows are the lines of a file, in order, number by number."""
  lines = _data_lines(content)
  need(len(read) == len(lines), "rows were dropped or added")
  named = bool(lines) and ".jpg" in lines[0]
  split = [line.removesuffix("," * named).split(",") for line in lines]
  if named:
    need([fields[0] for fields in split] == list(read.images), "images are not those of the lines")
  said = np.array([[float(field) for field in fields[named:]] for fields in split])
  numbers = _numbers(read)
  need(np.array_equal(said.reshape(numbers.shape), numbers), "numbers are not those of the lines")
  need(read.va is None or np.nanmax(np.abs(read.va), initial=0) <= 1, "valence out of range")
  indices = numbers[:, 2:] if read.va is not None else numbers
  need(indices.min(initial=0) >= -1, "an index out of range")
  need(not (predictions and (numbers < -1).any()), "a missing number among predictions")
  need(not (predictions and (indices < 0).any()), "a missing index among predictions")


def _annotations(task: str) -> Start:
  def start(folder: Path) -> tuple[list[bytes], Check]:
    from affjax import annotations

    seeds = [_written(folder, task, form.header) for form in annotations.FORMATS[task]]
    file, again = folder / "v1.txt", folder / "again" / "v1.txt"
    again.parent.mkdir()

    def check(data: bytes) -> str:
      file.write_bytes(data)
      for predictions in (True, False):
        with refusing(file, numbered=data.count(b"\n") + 1) as said:
          read = annotations.read(file, task, predictions=predictions)
        if not said.text:
          _check_rows(read, data, predictions)
          annotations.write(again, task, read, _header(data))
          back = annotations.read(again, task)
          same = back.images == read.images and np.array_equal(_numbers(back), _numbers(read))
          need(same, "what is written again reads differently")
      return said.text

    return seeds, check

  return start


def _folder_of_videos(folder: Path) -> tuple[list[bytes], Check]:
  """Per-video files whose names are of any bytes; parts are name, NAME_END, content."""
  from affjax import annotations

  seeds = []
  for task, header in (("va", "valence,arousal"), ("au", ",".join(annotations.labels.AU_MTL))):
    content = _written(folder, task, header, 3)
    named = [b"v1.txt", b"52-30-1280x720_left.txt"]
    seeds.append(END.join(name + NAME_END + content for name in named))
  root = folder / "videos"

  def check(data: bytes) -> str:
    files = {}
    for part in data.split(END)[:8]:
      name, _, content = part.partition(NAME_END)
      name = name.replace(b"/", b"_").replace(b"\0", b"_")[:255]
      files[b"_.txt" if name.strip(b".") == b"" else name] = content
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in files.items():
      Path(root, os.fsdecode(name)).write_bytes(content)
    task = "va" if b"valence,arousal" in data else "au"
    with refusing(root) as said:
      read = annotations.read(root, task)
    if not said.text:
      names = sorted(os.fsdecode(name) for name in files if name.endswith(b".txt"))
      rows = [
        annotations.frames(name.removesuffix(".txt"), len(_data_lines(files[os.fsencode(name)])))
        for name in names
      ]
      need(read.images == tuple(sum(rows, [])), "rows are not those of the files")
    return said.text

  return seeds, check


def _release_list(folder: Path) -> tuple[list[bytes], Check]:
  from affjax import annotations

  lists = [f for forms in annotations.FORMATS.values() for f in forms if f.image]
  header = lambda form: form.header.encode() + b"\n"
  image = {"frame": b"v1/00001.jpg\nv-2/00007.jpg,\n", "file": b"0.jpg\n1.jpg,\n"}
  seeds = [header(form) + image[form.image] for form in lists]
  seeds.append(_written(folder, "mtl", lists[0].header))
  file = folder / "list.txt"

  def check(data: bytes) -> str:
    file.write_bytes(data)
    head = _header(data)
    of = [t for t, forms in annotations.FORMATS.items() if head in [f.header for f in forms]]
    with refusing(file, numbered=data.count(b"\n") + 1) as said:
      names = annotations.read_names(file, of[0] if of else "mtl")
    if not said.text:
      first = [line.partition(",")[0] for line in _data_lines(data)]
      need(list(names) == first, "names are not those of the lines")
    return said.text

  return seeds, check


def _f1(prediction: np.ndarray, target: np.ndarray) -> float:
  both = (prediction & target).sum()
  return 2 * both / max(prediction.sum() + target.sum(), 1)


def _ccc(x: np.ndarray, y: np.ndarray) -> float:
  if not len(x):
    return 0.0
  cross = ((x - x.mean()) * (y - y.mean())).mean()
  below = x.var() + y.var() + (x.mean() - y.mean()) ** 2
  return 2 * cross / below if below else 0.0


def _expected_score(labels: Any, predictions: Any) -> float:
  """The score of the newest edition, or of ABAW2 where it has the names; images once each."""
  at = {image: row for row, image in enumerate(predictions.images)}
  ours = np.array([row for row, image in enumerate(labels.images) if image in at], int)
  theirs = np.array([at[labels.images[row]] for row in ours], int)
  total = 0.0
  if labels.va is not None:
    for truth, given in zip(labels.va[ours].T, predictions.va[theirs].T, strict=True):
      known = ~np.isnan(truth)
      total += _ccc(given[known], truth[known]) / 2
  if labels.expression is not None:
    truth, given = labels.expression[ours], predictions.expression[theirs][:]
    truth, given = truth[truth >= 0], given[truth >= 0]
    f1 = np.mean([_f1(given == k, truth == k) for k in range(len(labels.classes))])
    accuracy = (truth == given).sum() / max(len(truth), 1)
    total += 0.67 * f1 + 0.33 * accuracy if len(labels.classes) == 7 and (
      "neutral" in labels.classes
    ) else f1  # fmt: skip
  if labels.au is not None:
    truth, given = labels.au[ours], predictions.au[theirs]
    known = truth >= 0
    f1 = np.mean([
      _f1(g[k] == 1, t[k] == 1) for t, g, k in zip(truth.T, given.T, known.T, strict=True)
    ])  # fmt: skip
    accuracy = (truth == given)[known].sum() / max(known.sum(), 1)
    total += (f1 + accuracy) / 2 if len(labels.units) == 8 else f1
  return total


def _score(mutated: str) -> Start:
  """From two files to the JSON and the table; either labels or predictions are mutated."""

  def start(folder: Path) -> tuple[list[bytes], Check]:
    from affjax import annotations, score

    file, other, seeds = folder / "v1.txt", {}, []
    for task, forms in annotations.FORMATS.items():
      for form in forms:
        truth, answers = _rows(task, form.header, 12, seed=1), _answers(task, form.header)
        both = {"labels": (truth, answers), "predictions": (answers, truth)}[mutated]
        annotations.write(file, task, both[0], form.header)
        seeds.append(file.read_bytes())
        other[form.header] = task, both[1]

    def check(data: bytes) -> str:
      file.write_bytes(data)
      task, rows = other.get(_header(data), other["valence,arousal"])
      with refusing(file, numbered=data.count(b"\n") + 1) as said:
        given = annotations.read(file, task, predictions=mutated == "predictions")
      if said.text:
        return said.text
      truth, answers = (given, rows) if mutated == "labels" else (rows, given)
      if len(truth) not in (0, 1, 11, 12, 13):
        return "left out: each number of rows is compiled, and memory fills"
      for missing in ("error", "skip"):
        with refusing() as said:
          _check_score(score.score(task, truth, answers, missing=missing), truth, answers)
      return said.text

    return seeds, check

  return start


def _answers(task: str, header: str) -> Any:
  """Predictions for the rows of `_rows`: without missing ones."""
  rows = _rows(task, header, 12)
  lowest = lambda column: None if column is None else np.maximum(column, 0)
  return dataclasses.replace(
    rows,
    va=None if rows.va is None else np.nan_to_num(rows.va),
    expression=lowest(rows.expression),
    au=lowest(rows.au),
  )


def _check_score(result: dict[str, Any], labels: Any, predictions: Any) -> None:
  from affjax import score

  json.dumps(result, allow_nan=False)
  need(score.table(result), "no table")
  if len(set(predictions.images)) == len(predictions):
    expected = _expected_score(labels, predictions)
    need(abs(result["score"] - expected) < 1e-9, f"score {result['score']} is not {expected}")


# Tables of images.


def _table(folder: Path) -> tuple[list[bytes], Check]:
  from affjax.labels import EXPRESSIONS
  from tfds_builders.image_folder import table

  seeds = [
    b"path,person,video,frame,split,valence,arousal,expression,AU1,AU12\r\n"
    b'a/1.jpg,"Anna, B",v1,1,train,.5,-1e-2,Anger,1,0.0\r\nb.png,,,,test,,,,,\r\n',
    b"path,AU4\n1.jpg,1\n",
    b"path,expression\n1.jpg,neutral\n\n2.jpg,\n",
  ]
  file, again = folder / "labels.csv", folder / "again.csv"

  def text(name: str, value: Any) -> str:
    if name == "expression":
      return EXPRESSIONS[value] if value >= 0 else ""
    if isinstance(value, float):
      if value != value:
        return ""
      return str(int(value)) if table.UNIT.fullmatch(name) else repr(value)
    return "" if value == -1 else str(value)

  def check(data: bytes) -> str:
    file.write_bytes(data)
    with refusing(file) as said:
      rows = table.read(file)
    if said.text:
      return said.text
    lines = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    need(len(rows.lines) == sum(1 for line in lines if line) - 1, "rows were dropped or added")
    need(all(len(c) == len(rows.lines) for c in rows.columns.values()), "columns of unequal length")
    need(rows.lines == sorted(set(rows.lines)), "lines out of order")
    need(all(p.isprintable() for p in rows.columns["path"]), "a path that cannot be shown")
    need(set(table.splits(rows)) <= set(table.SPLITS), "another split")
    table.in_two(rows, table.splits(rows))
    with again.open("w", newline="") as f:
      writer = csv.writer(f)
      writer.writerow(rows.columns)
      for row in zip(*rows.columns.values(), strict=True):
        writer.writerow([text(name, v) for name, v in zip(rows.columns, row, strict=True)])
    back = table.read(again).columns
    same = lambda a, b: a == b or (a != a and b != b)
    for name, column in rows.columns.items():
      need(all(map(same, column, back[name])), f"{name} is written again and reads differently")
    return ""

  return seeds, check


def _votes(folder: Path) -> tuple[list[bytes], Check]:
  from tfds_builders.ferplus import ferplus_dataset_builder as ferplus

  header = ",".join(["Usage", "Image name", *ferplus.VOTE_COLUMNS])
  seeds = [
    f"{header}\r\nTraining,fer0000000.png,4,0,0,1,3,2,0,0,0,0\r\nTraining,,4,0,0,1,3,2,0,0,0,0\r\n"
    "PublicTest,fer0000001.png,10,0,0,0,0,0,0,0,0,0\r\n".encode()
  ]
  file = folder / "fer2013new.csv"

  def check(data: bytes) -> str:
    file.write_bytes(data)
    with refusing(file) as said:
      votes = ferplus.read_votes(file)
    if not said.text:
      for images in votes.values():
        for name, numbers in images.items():
          whole = numbers.shape == (10,) and numbers.dtype.kind == "i"
          need(whole and (numbers >= 0).all(), f"votes {numbers!r} of {name!r}")
          need(np.isfinite(ferplus.distribution(numbers)).all(), "a share that is no number")
    return said.text

  return seeds, check


# Records and images.


def _encoded(size: int = 12) -> dict[str, bytes]:
  """Small images, by how they are encoded."""
  import cv2

  smooth = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 3, 3), np.uint8), (size, size))
  grey, wide = smooth[..., 0], cv2.resize(smooth, (20, 9))
  alpha = np.concatenate([smooth, smooth[..., :1]], axis=-1)
  kinds = {"a.jpg": smooth, "b.jpg": grey, "c.png": smooth, "d.png": grey, "e.png": alpha}
  kinds["f.jpg"] = kinds["g.png"] = wide
  return {name: cv2.imencode(name[1:], image)[1].tobytes() for name, image in kinds.items()}


def _image(folder: Path) -> tuple[list[bytes], Check]:
  """As it is checked when a data set is made, as it is read from a file and from a record."""
  from affjax.data import records
  from tfds_builders import images

  file = folder / "face.jpg"

  def check(data: bytes) -> str:
    file.write_bytes(data)
    with refusing("face.jpg") as checked:
      images.check("face.jpg", data, None)
    with refusing(file) as said:
      image = records.read_image(file)
      whole = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
      need(whole and image.size, f"an image of shape {image.shape}")
    out = np.empty((16, 16, 3), np.uint8)
    need(records.decode_into(data, out) != bool(said.text), "read from one place and not the other")
    need(checked.text or not said.text, "an image that passed the check cannot be read")
    return said.text

  return list(_encoded().values()), check


def _prepared(folder: Path) -> Any:
  """A small image folder, prepared; all of it is in the split `train`."""
  from affjax.data import prepare, records

  source = folder / "source"
  source.mkdir()
  rows = ["path,person,split,valence,arousal,expression,AU1"]
  for k, (name, content) in enumerate(_encoded().items()):
    (source / name).write_bytes(content)
    rows.append(f"{name},p{k},train,{k / 10},,{'anger' if k % 2 else ''},{k % 2}")
  (source / "labels.csv").write_text("\n".join(rows))
  build = records.builder("image_folder", "fuzz", str(folder / "data"))
  prepare.prepare(build, str(source))
  return build


def _write_records(path: str | Path, contents: list[bytes]) -> None:
  from array_record.python import array_record_module

  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for content in contents:
    writer.write(content)
  writer.close()


def _read_split(build: Any, place: str | Path, packed_too: bool = False) -> str:
  """Reads images and labels of `train`; what is refused, which names something in `place`."""
  from affjax.data import packed, records

  with refusing(place) as said:
    shards = packed.shards(build, "train", "auto" if packed_too else "tfds", 16)
    images = records.Images(shards, (16, 16))
    batch = images(np.arange(len(shards)))
    need(batch["image"].shape == (len(shards), 16, 16, 3), "images of another shape")
    for row in records.lost(batch["index"])[:1].tolist():
      said.text = images.why(row)
      need(said.text.isprintable() and str(place) in said.text, f"lost: {said.text!r}")
  with refusing(place) as labels_said:
    _check_table(records.label_table(build, "train"), len(records.shards(build, "train")))
  return said.text or labels_said.text


def _check_table(columns: dict[str, np.ndarray], rows: int) -> None:
  need({"key", "labels/va", "mask/va"} <= set(columns), "columns are lacking")
  need(all(len(c) == rows for c in columns.values()), "columns of another length")
  for name, column in columns.items():
    kind = {"key": "S", "person": "S", "video": "S", "frame": "i"}.get(name, "f")
    need(column.dtype.kind == kind, f"{name} of type {column.dtype}")
    need(kind == "S" or np.isfinite(column).all(), f"{name} is not finite")


def _forget(build: Any) -> None:
  """Removes what would be read instead of the records."""
  from affjax.data import records

  for name in (records.SUMMARY, records.TABLE.format("train"), records.MANIFEST):
    Path(build.data_dir, name).unlink(missing_ok=True)


def _shard(folder: Path) -> tuple[list[bytes], Check]:
  """The whole file of a split."""
  from affjax.data import records

  build = _prepared(folder)
  file = Path(records.shards(build, "train").paths[0])

  def check(data: bytes) -> str:
    _forget(build)
    # A new file each time: a reader may still have the last one open.
    file.unlink()
    file.write_bytes(data)
    return _read_split(build, file)

  return [file.read_bytes()], check


def _record(folder: Path) -> tuple[list[bytes], Check]:
  """One record among sound ones."""
  from affjax.data import records

  build = _prepared(folder)
  shards = records.shards(build, "train")
  sound = shards.read(range(len(shards)))

  def check(data: bytes) -> str:
    _forget(build)
    Path(shards.paths[0]).unlink()
    _write_records(shards.paths[0], [sound[0], data, *sound[2:]])
    return _read_split(build, shards.paths[0])

  return sound, check


def _beside(folder: Path) -> tuple[list[bytes], Check]:
  """What lies beside the shards of a data set: name, newline, content of one such file."""
  from affjax.data import packed, records

  build = _prepared(folder)
  packed.pack(build, "train", 16)
  expected, place = records.summary(build), Path(build.data_dir)
  files = {f.name: f.read_bytes() for f in place.iterdir() if "array_record" not in f.name}

  def check(data: bytes) -> str:
    name, _, content = data.partition(b"\n")
    if name.decode(errors="replace") not in files:
      return "no such file"
    for other, sound in files.items():
      (place / other).write_bytes(content if other.encode() == name else sound)
    with refusing(place) as said:
      again = records.builder("image_folder", "fuzz", str(folder / "data"))
      found = records.summary(again)
      need(isinstance(found["fingerprint"], str), "a fingerprint that is no text")
      need(set(found["splits"]) == set(expected["splits"]), "other splits")
      need(isinstance(records.metadata(again)["labels"], dict), "labels without names")
      said.text = _read_split(again, place, packed_too=True)
    return said.text

  return [name.encode() + b"\n" + content for name, content in files.items()], check


# Configs and the command line.


def _config(module: str, arguments: list[str]) -> Start:
  def start(folder: Path) -> tuple[list[bytes], Check]:
    get_config = importlib.import_module(f"configs.{module}").get_config
    usual = get_config("")

    def check(data: bytes) -> str:
      with refusing() as said:
        config = get_config(data.decode(errors="surrogateescape"))
      if not said.text:
        plain = json.loads(config.to_json_best_effort())
        need(plain["data"]["name"], "no data")
        for name in ("steps", "batch_size"):
          need(config[name] > 0, f"{name}={config[name]}")
          need(type(config[name]) is type(usual[name]), f"{name} of another type")
      return said.text

    return [argument.encode() for argument in arguments], check

  return start


def _flags(folder: Path) -> tuple[list[bytes], Check]:
  """The command line, an argument a line, up to the config as plain types."""
  from absl.testing import flagsaver

  from affjax import main

  seeds = [
    "--config=configs/vit_mtl.py:data=ferplus,variant=S/16\n--workdir=runs/a",
    "--config=configs/vit_mtl.py\n--config.optimizer.learning_rate=3e-4\n--config.steps=10",
    "--config=configs/lsd.py:classes=6\n--mode=check\n--noopen_data\n--nocompile\n--topology=v5e:2",
    "--config=configs/vit_mtl.py\n--config.data.report=('a','b')\n--config.labels.va=('v',)",
    "--config\nconfigs/vit_mtl.py\n--config.evaluate.probe=false\n--config.mesh.rules=fsdp",
    "--mode=evaluate\n--workdir=w\n--splits=a,b\n--checkpoint=latest\n--weights=raw\n--processes=2",
  ]

  gc.freeze()  # what is there stays there, and collecting the rest is quick

  def check(data: bytes) -> str:
    lines = data.decode(errors="surrogateescape").replace("\0", "").split("\n")
    if any("flagfile" in line or line.startswith("--config=/") for line in lines):
      return "left out: it would read any file"
    saved, arguments = flagsaver.save_flag_values(), sys.argv
    sys.argv = ["main", *lines]  # where ml_collections looks for the fields that are set
    try:
      main._parse(sys.argv)
      if main._CONFIG.value is not None:
        json.dumps(main._config())
      return ""
    except (SystemExit, ValueError) as e:
      said = str(e) if isinstance(e, SystemExit) else f"error: {main._one_line(e)}"
      need(said.startswith("error: ") and said.isprintable(), f"said {said!r}"[:300])
      return said
    finally:
      sys.argv = arguments
      flagsaver.restore_flag_values(saved)
      gc.collect()  # absl's search for flags that are spelt alike leaves much behind

  return [seed.encode() for seed in seeds], check


def _sections(folder: Path) -> tuple[list[bytes], Check]:
  """Sections of a config, as JSON."""
  from affjax import build
  from affjax.models import affect  # noqa: F401  so that it is traced too
  from affjax.procedures import supervised  # noqa: F401
  from configs import vit_mtl

  config = json.loads(vit_mtl.get_config().to_json_best_effort())
  model, losses = config["model"], config["losses"]
  places = {
    "affjax.losses": list(losses.values()),
    "affjax.optim": [config["optimizer"]],
    "affjax.models": [model, model["encoder"], model["decoder"]],
    "affjax.procedures": [config["procedure"]],
  }

  def check(data: bytes) -> str:
    try:
      place, section = json.loads(data)
    except (ValueError, TypeError, RecursionError):
      return "no place and section"
    if not isinstance(place, str) or place not in places:
      return "no such place"
    with refusing(shown_by_main=True) as said:
      if place == "affjax.optim":
        build.build(section, place, steps=2500)
      else:
        target = build.bind(section, place, 3 if place == "affjax.losses" else 0).func
        need(target.__module__.startswith(place), f"{target!r} was found in {place}")
    return said.text

  return [
    json.dumps([p, section]).encode() for p, many in places.items() for section in many
  ], check


# Weights.


def _block(number: int | None) -> dict[str, list[int]]:
  """Shapes of a block of an encoder, as a run has them; None: of the blocks stacked."""
  first, lead = ("", [2]) if number is None else (f"{number}/", [])
  head = f"blocks/{first}"
  return {f"{head}attention/out/kernel": [*lead, 4, 4], f"{head}mlp_norm/scale": [*lead, 4]}


def _weights_file(ending: str) -> Start:
  def start(folder: Path) -> tuple[list[bytes], Check]:
    from safetensors.numpy import save_file

    from affjax.models import weights

    arrays = {n: np.arange(np.prod(s), dtype=np.float32).reshape(s) for n, s in _block(0).items()}
    arrays |= {"steps": np.array(3), "empty": np.zeros((0, 2), np.float16)}
    file = folder / f"weights.{ending}"
    seeds = []
    savers = {
      "npz": (lambda: np.savez(file, **arrays), lambda: np.savez_compressed(file, **arrays)),
      "safetensors": (lambda: save_file(arrays, file),),
    }
    for save in savers[ending]:
      save()
      seeds.append(file.read_bytes())

    def check(data: bytes) -> str:
      file.write_bytes(data)
      with refusing(file) as said:
        for name, array in weights.read(file).items():
          need(isinstance(name, str) and isinstance(array, np.ndarray), f"{name!r} is no array")
          need(array.dtype.kind in "biufV", f"{name!r} is of {array.dtype}")
      return said.text

    return seeds, check

  return start


# What a pickle might do if it were run, by the names of audit events.
_DONE = {"os.system", "os.exec", "os.mkdir", "os.remove", "subprocess.Popen", "socket.connect"}
_DONE |= {"pickle.find_class", "shutil.rmtree"}


class _Harm:
  """Pickled, it is a call of `os.mkdir`."""

  def __reduce__(self) -> tuple[Any, tuple[str]]:
    return os.mkdir, ("harm",)


def _legacy_file(folder: Path) -> tuple[list[bytes], Check]:
  """Pickles of arrays, of torch too where it is installed; nothing in them may be run."""
  from scripts import convert_pickle

  arrays = {n: np.ones(shape, np.float32) for n, shape in _block(0).items()}
  values = {"state": {"a": np.arange(4), "b": {"c.d": arrays}}, "epoch": 3, "steps": [np.ones(2)]}
  seeds = [pickle.dumps(values, protocol) for protocol in range(6)]
  seeds += [pickle.dumps({"a": np.ones(3), "b": _Harm()}, protocol) for protocol in (0, 2, 4)]
  file, done, watching = folder / "weights.pth", [], []
  if importlib.util.find_spec("torch"):
    import torch

    state = {"a.weight": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}
    for zipped in (True, False):
      torch.save(state, file, _use_new_zipfile_serialization=zipped)
      seeds.append(file.read_bytes())

  def hear(event: str, _: Any) -> None:
    if watching and event in _DONE:
      done.append(event)

  sys.addaudithook(hear)

  def check(data: bytes) -> str:
    file.write_bytes(data)
    done.clear()
    watching.append(True)
    try:
      with refusing(file) as said:
        for name, array in convert_pickle.load(file)[0].items():
          need(isinstance(name, str) and array.dtype.kind in "biuf", f"{name!r}: {array!r}"[:200])
    finally:
      watching.clear()
    need(not done, f"{done} was done")
    return said.text

  return seeds, check


def _hugging(depth: int = 2) -> dict[str, list[int]]:
  """Names and shapes of a small ViT of `transformers`."""
  shapes = {"embeddings.cls_token": [1, 1, 4], "embeddings.position_embeddings": [1, 5, 4]}
  shapes |= {"embeddings.patch_embeddings.projection.weight": [4, 3, 2, 2], "layernorm.bias": [4]}
  for k in range(depth):
    for part in ("attention.attention.query", "attention.attention.key", "output.dense"):
      shapes[f"encoder.layer.{k}.{part}.weight"] = [4, 4]
    shapes[f"encoder.layer.{k}.attention.attention.value.weight"] = [4, 4]
  return shapes


def _names(folder: Path) -> tuple[list[bytes], Check]:
  """Names and shapes of weights, as JSON: none of their numbers may get lost on the way."""
  from affjax.models import weights

  seeds = [_hugging(), {**_block(0), **_block(1), "norm/scale": [4]}, _block(None)]

  def check(data: bytes) -> str:
    arrays = _arrays(data)
    if not arrays:
      return "no names and shapes"
    size = lambda named: sum(array.size for array in named.values())
    with refusing(shown_by_main=True) as said:
      if weights.of_transformers(arrays):
        kept = {n: a for n, a in arrays.items() if not re.search("pooler|classifier|mask_token", n)}
        need(size(weights.from_transformers(kept)) == size(kept), "numbers were lost")
      else:
        flat = weights.unstack(arrays)
        need(size(flat) == size(arrays), "numbers were lost when blocks were taken apart")
        need(size(weights.stack(flat)) == size(arrays), "numbers were lost when they were stacked")
    return said.text

  return [json.dumps(seed).encode() for seed in seeds], check


def _arrays(data: bytes) -> dict[str, np.ndarray]:
  """JSON {name: shape} -> zeros; nothing if it is none, or of a large array."""
  try:
    shapes = json.loads(data)
    fits = lambda n: type(n) is int and 0 <= n < 9
    if all(isinstance(s, list) and len(s) < 6 and all(map(fits, s)) for s in shapes.values()):
      return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  except (ValueError, AttributeError, RecursionError):
    pass
  return {}


def _initialise(folder: Path) -> tuple[list[bytes], Check]:
  """The section of a config that says what is taken from a file, as JSON."""
  import jax

  from affjax import initialise

  zeros = lambda shapes: {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  np.savez(folder / "w.npz", **zeros({**_block(0), **_block(1), "positions": [1, 5, 4]}))
  own = {f"model/encoder/{n}": s for n, s in (_block(None) | {"positions": [1, 10, 4]}).items()}
  own |= {"model/head/kernel": [4, 2]}
  leaf = lambda shape: jax.ShapeDtypeStruct(shape, np.float32)
  state = types.SimpleNamespace(params={n: leaf(s) for n, s in own.items()}, model_state={})
  seeds = [
    dict(include="encoder", exclude="positions", rename=[["^", "model/encoder/"]]),
    dict(include=".*", exclude="", rename=[["^(blocks.*)$", r"model/encoder/\1"], ["x*", ""]]),
    dict(checkpoint="best", weights="ema", rename=[["^positions", "model/encoder/positions"]]),
  ]

  def check(data: bytes) -> str:
    try:
      section = json.loads(data)
    except (ValueError, RecursionError):
      return "not JSON"
    if not isinstance(section, dict):
      return "not a section"
    with refusing(shown_by_main=True) as said:
      taken = initialise.read({**section, "source": str(folder / "w.npz")}, state)
    if not said.text:
      shapes = {name: list(array.shape) for name, array in taken.arrays.items()}
      need(shapes.items() <= own.items(), "arrays of other names or shapes")
    return said.text

  return [json.dumps(seed).encode() for seed in seeds], check


# What a run leaves in its folder.


def _run_config(folder: Path) -> tuple[list[bytes], Check]:
  from affjax import workdir
  from configs import vit_mtl

  config = json.loads(vit_mtl.get_config().to_json_best_effort())
  file = folder / workdir.CONFIG

  def check(data: bytes) -> str:
    file.write_bytes(data)
    with refusing(folder) as said:
      need(isinstance(workdir.read_config(folder), dict), "a config that is no dict")
    with refusing(folder, shown_by_main=True):
      workdir.check(folder, config)
    return said.text

  return [json.dumps(config, indent=1).encode(), b'{"a": {"b": 1}, "c": [null, 1e-3]}'], check


def _checkpoints(folder: Path) -> tuple[list[bytes], Check]:
  """Two sealed steps, of which the later one's manifest and score are what is read."""
  from affjax import checkpoints

  for step, score in ((10, 0.25), (20, 0.5)):
    (folder / f"{step}" / "metrics").mkdir(parents=True)
    (folder / f"{step}" / "metrics" / "metrics").write_text(json.dumps({"score": score}))
    (folder / f"{step}" / "data").write_bytes(b"\0" * 100)
    checkpoints.seal(folder / f"{step}")
  manifest = folder / "20" / checkpoints.MANIFEST
  metrics = folder / "20" / "metrics" / "metrics"
  seed = END.join([manifest.read_bytes(), metrics.read_bytes()])

  def check(data: bytes) -> str:
    sealed, _, score = data.partition(END)
    manifest.write_bytes(sealed)
    metrics.write_bytes(score or json.dumps({"score": 0.5}).encode())
    lines: list[str] = []
    with refusing(folder) as said:
      problem = checkpoints.damage(folder / "20")
      need(problem is None or (problem and problem.isprintable()), f"says {problem!r}")
      latest = checkpoints.latest_intact(folder, repair=False, say=lines.append)
      need(latest == (10 if problem else 20), f"step {latest} is the latest intact one")
    with refusing(folder) as best_said:
      need(checkpoints.best_intact(folder, lines.append) in (10, 20), "no best step")
    need(all(line.isprintable() for line in lines), f"says {lines!r}")
    return said.text or best_said.text or (lines[0] if lines else "")

  return [seed], check


VIT = ["", "debug", "data=ferplus", "data=image_folder/my_set,metric=expression/f1,steps=7"]
VIT += ["data=s_aff_wild2,variant=S/16,batch_size=8", "plain=true,debug=false"]
LSD = ["", "classes=6,debug", "data=lsd7,variant=mu/8,steps=30,batch_size=4"]

TARGETS: dict[str, Start] = {
  **{f"annotations/{task}": _annotations(task) for task in ("mtl", "va", "expression", "au")},
  **{f"annotations/{task}": _annotations(task) for task in ("lsd", "ce")},
  "annotations/folder": _folder_of_videos,
  "annotations/names": _release_list,
  "score/labels": _score("labels"),
  "score/predictions": _score("predictions"),
  "image_folder": _table,
  "ferplus": _votes,
  "image": _image,
  "record": _record,
  "shard": _shard,
  "beside": _beside,
  "config/vit_mtl": _config("vit_mtl", VIT),
  "config/lsd": _config("lsd", LSD),
  "flags": _flags,
  "build": _sections,
  "weights/npz": _weights_file("npz"),
  "weights/safetensors": _weights_file("safetensors"),
  "weights/names": _names,
  "pickle": _legacy_file,
  "initialise": _initialise,
  "workdir": _run_config,
  "checkpoints": _checkpoints,
}
