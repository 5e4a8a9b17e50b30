"""A run's predictions as an edition of ABAW takes them: written, read again, checked, scored.

  python -m affjax.submit --checkpoint=runs/x --task=expression --edition=8 --output=predictions.txt
    --test_list=CVPR_8th_ABAW_EXPR_test_set_sample.txt --images=cropped_aligned
  python -m affjax.submit --checkpoint=runs/x --task=va --edition=3 --output=FOLDER
    --test_list=names_of_videos.txt --videos=FOLDER --images=cropped_aligned
  python -m affjax.submit --checkpoint=runs/x --task=au --edition=6 --output=validation.txt
    --test_list=Validation_Set --labels=Validation_Set --images=cropped_aligned

The test list says what is asked for and in which order: a list of images (duplicates stay), or
every frame of some videos: a folder of per-video files, of as many lines as frames, or names of
videos, one a line, whose frames are counted in --videos. Frame k of VIDEO is
IMAGES/VIDEO/{k:05d}.jpg. A frame without such a crop, because no face was found, is filled from
others of its video, which is counted; nothing else is guessed.

An expression of the edition is the model's of that name (contempt counts as other); what the
edition lacks is no answer. Compound expressions of a model that knows basic ones alone: "fearfully
surprised" is as probable as fear and surprise are together (p + p; INFERRED: our reading).
"""

import argparse
import dataclasses
import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

from affjax import annotations, calibrate, inference, labels, score
from affjax.annotations import Annotations, Format
from tfds_builders import images as image_files
from tfds_builders import progress
from tfds_builders.aff_wild2 import videos

CHUNK = 1024  # images without a video that are predicted at once
_SHOWN = 5  # names in a message
_BASIC = {
  "fearfully": "fear", "happily": "happiness", "sadly": "sadness", "disgustedly": "disgust",
  "angrily": "anger", "surprised": "surprise", "fearful": "fear", "angry": "anger",
}  # fmt: skip

Values = dict[str, np.ndarray]


# What is asked for.


def listed(
  test_list: str | Path, task: str, edition: int, source: str | Path | None = None
) -> tuple[str, ...]:
  """The images that a submission holds, in its order.

  Args:
    test_list: see the module's docstring.
    task: a key of `annotations.SUBMISSIONS`.
    edition: of ABAW.
    source: folder of the videos, to count the frames of those that are named in `test_list`. The
      labels have one frame more than most decoders count, so one is added.

  Raises:
    ValueError: names the file and line that cannot be such a list.
  """
  form = annotations.submission(task, edition)
  named = form.image != "file" and task != "mtl"  # all frames of a video are asked for, or some
  if source is not None and (os.path.isdir(test_list) or not named):
    raise ValueError(f"--videos={source} is for the names of videos alone: leave it out")
  if os.path.isdir(test_list):
    images = annotations.read(test_list, task).images
  elif not named or annotations.has_header(test_list, task):
    if not form.image:
      raise ValueError(
        f"{test_list}:1: ABAW{edition} takes a {form.name} each: give a folder of such files, or"
        " the names of the videos, one a line, and no header"
      )
    if source is not None:
      raise ValueError(f"{test_list}: it lists images already: leave out --videos={source}")
    images = annotations.read_names(test_list, task)
  else:
    images = _all_frames(annotations.read_videos(test_list, task), test_list, source)
  if not images:
    raise ValueError(f"{test_list}: lists no images")
  if form.image:
    return images
  # As the files are read again. Sorting keeps the frames of a video in their order.
  return tuple(sorted(images, key=lambda image: f"{image.partition('/')[0]}.txt"))


def _all_frames(
  names: Sequence[str], test_list: str | Path, source: str | Path | None
) -> tuple[str, ...]:
  """All frames of the videos of some names, counted in the videos themselves."""
  if source is None:
    raise ValueError(
      f"{test_list}: names videos without their lengths: give their folder with --videos, or a"
      " folder of per-video files as --test_list"
    )
  files = videos.find(Path(source))
  bases = {name: videos.base(name) for name in names}
  lacking = [name for name, base in bases.items() if base not in files]
  if lacking:
    raise ValueError(f"--videos={source}: has no video of {_some(lacking)}, named in {test_list}")
  bar = progress.bar(sorted(set(bases.values())), "counting frames", "videos")
  counts = {base: videos.count(files[base]) + 1 for base in bar}
  total = sum(counts[base] for base in bases.values())
  print(
    f"warning: {total:,} frames of {len(names)} videos as a decoder counts them, and one more each;"
    " official lengths are those of the organisers' list",
    file=sys.stderr,
  )
  return tuple(
    image for name, base in bases.items() for image in annotations.frames(name, counts[base])
  )


def _some(names: Sequence[str]) -> str:
  return ", ".join(names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)


@dataclasses.dataclass(frozen=True)
class Frames:
  """The images that are asked for, each once, by video and in order of their frame numbers.

  Attributes:
    names: [frames] `video/00001.jpg`, sorted.
    row: [listed] where in `names` each image of the list is.
    number: [frames] int64 of the frame in its video, from 1.
    spans: video -> the slice of its frames.
    paths: [frames] files.
    present: [frames] bool, whether there is such a file.
  """

  names: list[str]
  row: np.ndarray
  number: np.ndarray
  spans: dict[str, slice]
  paths: list[str]
  present: np.ndarray


def find(
  images: Sequence[str], folders: Sequence[Path], inner: Mapping[str, str] | None = None
) -> Frames:
  """Looks up which of the images there are.

  Args:
    images: names, in the order of a list.
    folders: where they lie; one that lies in several must be the same in each, by its size.
    inner: name -> path in them; None: the names are the paths. Of images without a video, "0.jpg",
      all have to be there.

  Raises:
    ValueError: none is there, or one that nothing could stand for, or one differs in two folders.
  """
  unique, row = np.unique(np.array(images), return_inverse=True)
  names = unique.tolist()
  below = [inner[name] for name in names] if inner else names
  shown = " ".join(map(str, folders))
  present, paths = np.zeros(len(names), bool), [f"{folders[0]}/{path}" for path in below]
  for folder in folders:
    if not folder.is_dir():
      raise ValueError(f"--images={folder}: no such folder")
    here = image_files.present(folder, below, folder)
    for i in np.flatnonzero(here & present):
      other = f"{folder}/{below[i]}"
      if os.path.getsize(other) != os.path.getsize(paths[i]):
        raise ValueError(f"--images={shown}: {paths[i]} and {other} differ: leave one")
    for i in np.flatnonzero(here & ~present):
      paths[i] = f"{folder}/{below[i]}"
    present |= here
  if not present.any():
    raise ValueError(f"--images={shown}: none of {len(names)} images is there, such as {below[0]}")
  spans, start = {}, 0
  for video, group in itertools.groupby(name.rpartition("/")[0] for name in names):
    stop = start + len(list(group))
    spans[video], start = slice(start, stop), stop
  if "" in spans:
    if not present.all():
      absent = [path for path, there in zip(below, present, strict=True) if not there]
      raise ValueError(f"--images={shown}: {len(absent)} images are missing: {_some(absent)}")
    number = np.arange(len(names))
  else:
    number = np.array([name[-9:-4] for name in names], np.int64)
  return Frames(names, row, number, spans, paths, present)


# From outputs to answers.


def check_names(known: Mapping[str, Sequence[str]], form: Format, where: str) -> None:
  """Refuses a model that lacks what a format asks for.

  Args:
    known: task -> the model's labels.
    form: of the submission.
    where: the model is from, for the error.

  Raises:
    ValueError: names what the model lacks.
  """
  lacking = [name for name in labels.VA * form.va if name not in known.get("va", ())]
  own = known.get("expression", ())
  answers = _expression_matrix(own, form.classes).sum(0) > 0
  lacking += [name for name, there in zip(form.classes, answers, strict=True) if not there]
  lacking += [unit for unit in form.units if unit not in known.get("au", ())]
  if lacking:
    raise ValueError(
      f"{where}: its model lacks {', '.join(lacking)}, which a {form.name} asks for: train one with"
      " these in config.labels"
    )


def check_settings(
  settings: Mapping[str, Any], known: Mapping[str, Sequence[str]], tasks: Sequence[str]
) -> None:
  """Raises ValueError if settings of `calibrate` are of another model."""
  one = {task: np.zeros((1, len(known[task])), np.float32) for task in tasks}
  calibrate.apply(one, np.zeros(1, np.int64), np.ones(1, bool), settings, known)


def _expression_matrix(own: Sequence[str], classes: Sequence[str]) -> np.ndarray:
  """[own, classes] how the probabilities of a model's expressions add up to those asked for."""
  matrix = labels.remap(own, classes)
  if classes == labels.EXPRESSION_COMPOUND and not matrix.any():
    for k, name in enumerate(classes):
      parts = [_BASIC[word] for word in name.split()]
      if all(part in own for part in parts):
        matrix[[list(own).index(part) for part in parts], k] = 1
  return matrix


def post_process(
  outputs: Values, frames: Frames, settings: Mapping[str, Any], known: Mapping[str, Sequence[str]]
) -> Values:
  """What decides, by `calibrate.apply`; video by video, from frames that have a crop alone."""
  each = np.arange(len(frames.names))  # images without a video know nothing of one another
  videos = each if "" in frames.spans else _video_of(frames)
  return calibrate.apply(outputs, frames.number, frames.present, settings, known, videos)


def _video_of(frames: Frames) -> np.ndarray:
  """[frames] number of the video."""
  lengths = [span.stop - span.start for span in frames.spans.values()]
  return np.repeat(np.arange(len(lengths)), lengths)


def read_out(deciding: Values, known: Mapping[str, Sequence[str]], form: Format) -> Values:
  """What decides, in the terms of a format.

  Args:
    deciding: task -> [frames, size] of `calibrate.apply`.
    known: task -> the model's labels.
    form: of the submission.

  Returns:
    Those that the format has: "va" [frames, 2] values; "expression" [frames, classes]
    probabilities; "au" [frames, units] probabilities less their thresholds. NaN stays.
  """
  found: Values = {}
  if form.va:
    found["va"] = deciding["va"][:, [known["va"].index(name) for name in labels.VA]]
  if form.classes:
    probability = scipy.special.softmax(deciding["expression"], axis=1)
    found["expression"] = probability @ _expression_matrix(known["expression"], form.classes)
  if form.units:
    found["au"] = deciding["au"][:, [known["au"].index(unit) for unit in form.units]]
  return found


def fill(
  values: np.ndarray, number: np.ndarray, present: np.ndarray, how: str, max_gap: int | None = None
) -> np.ndarray:
  """Fills the frames of one video that have no prediction from those that have.

  Args:
    values: [frames, size]; what stands where there is no prediction does not matter.
    number: [frames] of the frames in their video, increasing.
    present: [frames] bool, whether there is a prediction; somewhere there is.
    how: "hold": the last prediction before, of the first frames the next after. "interpolate":
      linear in the frame number between the two; at both ends as "hold".
    max_gap: frames farther than this from the one that they are filled from (of two, from the
      nearer) get the mean of the video's predictions; None: however far.

  Returns:
    [frames, size].
  """
  there, frames = np.flatnonzero(present), np.arange(len(number))
  before = there[np.maximum(np.searchsorted(there, frames, side="right") - 1, 0)]
  distance = np.abs(number - number[before])
  if how == "hold":
    filled = values[before]
  else:
    after = there[np.minimum(np.searchsorted(there, frames), len(there) - 1)]
    distance = np.minimum(distance, np.abs(number[after] - number))
    columns = values[there].T
    filled = np.stack([np.interp(number, number[there], column) for column in columns], axis=1)
  if max_gap is not None:
    filled[distance > max_gap] = values[there].mean(0)
  return filled


def fill_all(values: Values, frames: Frames, how: str, max_gap: int | None = None) -> Values:
  """`fill` for each video; one without any prediction gets the mean of all that there are."""
  filled = {name: np.empty_like(array) for name, array in values.items()}
  for name, array in values.items():
    mean = array[frames.present].mean(0)
    for span in frames.spans.values():
      present = frames.present[span]
      filled[name][span] = (
        fill(array[span], frames.number[span], present, how, max_gap) if present.any() else mean
      )
  return filled


def answers(values: Values, frames: Frames, images: Sequence[str], form: Format) -> Annotations:
  """The rows of a submission.

  Args:
    values: of `read_out`, filled: the likeliest expression is the answer, the first of equals;
      units are on where they reach their threshold, one half unless calibrated; valence and arousal
      are clipped to [-1, 1].
    frames: that the values are of.
    images: in the order of the list.
    form: of the submission.
  """
  at = frames.row
  va, expression, au = (values.get(name) for name in labels.TASKS)
  return Annotations(
    images=tuple(images),
    va=None if va is None else va.clip(-1, 1)[at],
    expression=None if expression is None else expression.argmax(1)[at],
    au=None if au is None else (au >= 0).astype(np.int64)[at],
    classes=form.classes,
    units=form.units,
  )


# Predicting.


def run_model(predictor: Any, frames: Frames, tasks: Sequence[str]) -> Values:
  """Raw outputs of the frames that have a crop, video by video: task -> [frames, size], else NaN.

  Raises:
    ValueError: an image that cannot be read, or an output that is no number.
  """
  found: Values = {}
  total = int(frames.present.sum())
  with progress.bar(range(total), "predicting", "frames") as bar:
    for video, span in frames.spans.items():
      for rows in _portions(video, np.flatnonzero(frames.present[span]) + span.start):
        paths = [frames.paths[row] for row in rows]
        if video:
          outputs = predictor.sequence(paths, frames.number[rows])
        else:
          outputs = predictor.outputs(paths)
        for task in tasks:
          if not np.isfinite(outputs[task]).all():
            raise ValueError(
              f"{Path(paths[0]).parent}: the model's {task} of an image here is no number"
            )
          if task not in found:
            size = outputs[task].shape[1]
            found[task] = np.full((len(frames.names), size), np.nan, np.float32)
          found[task][rows] = outputs[task]
        bar.update(len(rows))
  return found


def _portions(video: str, rows: np.ndarray) -> list[np.ndarray]:
  """What is predicted at once: a video, or some of the images that are of none."""
  if video:
    return [rows] if len(rows) else []
  return np.split(rows, range(CHUNK, len(rows), CHUNK))


# Writing.


def check_output(output: Path, form: Format, overwrite: bool) -> None:
  """Refuses a place that cannot be written to, or that holds what would be lost.

  Raises:
    ValueError: says what is there.
  """
  folder = output.resolve().parent
  if not os.access(folder, os.W_OK):
    raise ValueError(f"--output={output}: {folder} is no folder that can be written to")
  if not output.exists():
    return
  if not overwrite:
    raise ValueError(f"--output={output}: is there already: name another, or give --overwrite")
  if output.is_dir() == bool(form.image):
    kind = "one file" if form.image else "a folder of files"
    raise ValueError(f"--output={output}: a {form.name} is wanted, {kind}; it is not: remove it")
  other = [p.name for p in output.iterdir() if p.suffix != ".txt"] if output.is_dir() else []
  if other:
    raise ValueError(f"--output={output}: holds more than per-video files ({other[0]}): remove it")


def write(output: Path, task: str, edition: int, rows: Annotations) -> None:
  """Writes a submission, whole or not at all; reads it again and compares before it is in place.

  Args:
    output: a file or, for the editions that took one for each video, a folder. What is there is
      replaced.
    task: a key of `annotations.SUBMISSIONS`.
    edition: of ABAW.
    rows: in the order of the list; of per-video files by the names of the files.

  Raises:
    ValueError: the rows do not fit the edition's format, or are not read as they were written.
  """
  form = annotations.submission(task, edition)
  with tempfile.TemporaryDirectory(prefix=".affjax-submit-", dir=output.resolve().parent) as place:
    partial = Path(place) / output.name
    if form.image:
      annotations.write(partial, task, rows, form.header)
    else:
      partial.mkdir()
      _write_videos(partial, task, rows, form)
    _compare(rows, annotations.read_submission(partial, task, edition, rows.images), partial)
    if output.is_dir():
      output.rename(Path(place) / "before")
    partial.rename(output)


def _write_videos(folder: Path, task: str, rows: Annotations, form: Format) -> None:
  start = 0
  for video, images in itertools.groupby(rows.images, lambda image: image.partition("/")[0]):
    stop = start + len(list(images))
    annotations.write(folder / f"{video}.txt", task, _part(rows, slice(start, stop)), form.header)
    start = stop


def _part(rows: Annotations, part: Any) -> Annotations:
  """Some rows: a slice, or [rows] bool."""
  indices = np.arange(len(rows))[part]
  columns = {name: getattr(rows, name) for name in labels.TASKS}
  return dataclasses.replace(
    rows,
    images=tuple(rows.images[i] for i in indices),
    **{name: column[part] for name, column in columns.items() if column is not None},
  )


def _compare(rows: Annotations, found: Annotations, path: Path) -> None:
  for name in labels.TASKS:
    written, read = getattr(rows, name), getattr(found, name)
    if written is not None and not np.array_equal(written, read):
      raise ValueError(f"{path.name}: {name} is not read as it was written; nothing is kept of it")


# Scores.


def check_labels(path: str, task: str, edition: int, images: Sequence[str]) -> Annotations:
  """Labels to score a submission of these images by.

  Raises:
    ValueError: they are of another edition, or of frames that the submission lacks.
  """
  truth, form = annotations.read(path, task), annotations.submission(task, edition)
  zeros = np.zeros(len(images), np.int64)
  constant = Annotations(
    tuple(images),
    va=np.zeros((len(images), 2)) if form.va else None,
    expression=zeros if form.classes else None,
    au=np.zeros((len(images), len(form.units)), np.int64) if form.units else None,
    classes=form.classes,
    units=form.units,
  )
  rows = score.score(task, truth, constant, edition=edition, missing="skip")["rows"]
  if rows["skipped_without_prediction"]:
    raise ValueError(
      f"--labels={path}: {rows['skipped_without_prediction']} of {rows['labelled']} labelled frames"
      " are not in --test_list"
    )
  return truth


def scores(
  task: str, edition: int, truth: Annotations, made: Mapping[str, Annotations], crop: np.ndarray
) -> str:
  """A table: two rows for each of some predictions, over all labelled frames and those with a crop.

  Args:
    task: a key of `annotations.SUBMISSIONS`.
    edition: of ABAW.
    truth: the labels.
    made: name of the row -> predictions.
    crop: [rows of the predictions] bool.
  """
  lines = [["", "frames", "score", "floor", *(labels.TASKS if task == "mtl" else ())]]
  for name, rows in made.items():
    over = {"all labelled frames": rows, "frames with a crop": _part(rows, crop)}
    for what, part in over.items():
      found = score.score(task, truth, part, edition=edition, missing="skip")
      cells = [found["score"], found["floor"]]
      if task == "mtl":
        cells += [found["va"]["ccc"], found["expression"]["f1"], found["au"]["f1"]]
      numbers = [f"{cell:.4f}" for cell in cells]
      lines.append([f"{name}, {what}", f"{found['rows']['scored']:,}", *numbers])
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in lines
  )


# The command.


def submit(arguments: argparse.Namespace) -> None:
  """What the command line asks for; all that can be refused is, before anything is predicted."""
  task, edition = arguments.task, arguments.edition
  output, folders = Path(arguments.output), [Path(folder) for folder in arguments.images]
  form = annotations.submission(task, edition)
  check_output(output, form, arguments.overwrite)
  images = listed(arguments.test_list, task, edition, arguments.videos)
  truth = check_labels(arguments.labels, task, edition, images) if arguments.labels else None
  settings: dict[str, Any] = {"raw": {}}
  if arguments.postprocess:
    settings["post-processed"] = calibrate.read(arguments.postprocess)
  predictor = inference.load(arguments.checkpoint, arguments.which)
  known = predictor.config["labels"]
  check_names(known, form, arguments.checkpoint)
  parts = {"va": form.va, "expression": form.classes, "au": form.units}
  tasks = [name for name, asked in parts.items() if asked]
  for chosen in settings.values():
    check_settings(chosen, known, tasks)
  frames = find(images, folders, _lsd_paths(task, arguments.test_list, folders[0]))

  outputs = run_model(predictor, frames, tasks)
  rows = {}
  for name, chosen in settings.items():
    values = read_out(post_process(outputs, frames, chosen, known), known, form)
    values = fill_all(values, frames, arguments.fill, arguments.max_gap)
    rows[name] = answers(values, frames, images, form)
  write(output, task, edition, list(rows.values())[-1])

  print(_filled(frames, arguments.fill, arguments.max_gap))
  print(
    f"{output}: a {form.name} of ABAW{edition}, {len(images):,} rows, {list(rows)[-1]}, of step"
    f" {predictor.step} of {arguments.checkpoint}; read again and equal"
  )
  if truth is not None:
    print(scores(task, edition, truth, rows, frames.present[frames.row]))
    if arguments.postprocess:
      print(
        f"post-processed: as {arguments.postprocess} says; in-sample, and so too high, if it was"
        " fitted to these labels"
      )


def _lsd_paths(task: str, test_list: str, folder: Path) -> dict[str, str] | None:
  """Where the images of an LSD tree are, if that is the list: name -> class folder/name."""
  if task != "lsd" or not os.path.isdir(test_list):
    return None
  tree = annotations.read(test_list, task)
  places = [place.name for place in annotations.lsd_folders(folder).values()]
  return {
    image: f"{places[k]}/{image}" for image, k in zip(tree.images, tree.expression, strict=True)
  }


def _filled(frames: Frames, how: str, max_gap: int | None) -> str:
  """How many frames were filled, by video."""
  absent = ~frames.present
  lines = [f"{absent.sum():,} of {len(absent):,} frames have no crop"]
  if absent.any():
    limit = "" if max_gap is None else f", at most {max_gap} frames away, else its video's mean"
    lines[0] += f": filled ({how}{limit})"
  for video, span in frames.spans.items():
    count, of = absent[span].sum(), span.stop - span.start
    if count:
      whole = ", all: by the mean of all predicted frames" if count == of else ""
      lines.append(f"  {video}: {count:,} of {of:,}{whole}")
  return "\n".join(lines)


def _at_least_one(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{number}: use 1 or more frames")
  return number


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.submit",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--checkpoint", required=True, metavar="RUN", help="folder of a run")
  add(
    "--which",
    default="best",
    metavar="best|latest|STEP",
    help="of its checkpoints; default best, by the run's metric",
  )
  add("--task", required=True, choices=list(annotations.SUBMISSIONS))
  posed = "; ".join(
    f"{task} {', '.join(map(str, sorted(editions)))}"
    for task, editions in annotations.SUBMISSIONS.items()
  )
  add("--edition", required=True, type=int, metavar="N", help=f"of ABAW: {posed}")
  add("--test_list", required=True, metavar="FILE_OR_FOLDER", help="what is asked for, see above")
  add(
    "--images",
    required=True,
    nargs="+",
    metavar="FOLDER",
    help="of the crops, such as cropped_aligned; of several archives of them each",
  )
  add("--videos", metavar="FOLDER", help="to count frames in, where the list names videos alone")
  add(
    "--fill",
    default="hold",
    choices=["hold", "interpolate"],
    help="frames without a crop: the last prediction before (of the first frames the next after),"
    " or linear in between, of values and of probabilities; default hold",
  )
  add(
    "--max_gap",
    type=_at_least_one,
    metavar="N",
    help="frames farther than this from the one that they are filled from get the mean of their"
    " video; default: however far",
  )
  add(
    "--output",
    required=True,
    metavar="PATH",
    help="file, such as predictions.txt; of ABAW1-3's VA, EXPR and AU a folder",
  )
  add("--overwrite", action="store_true", help="replace what is at --output")
  add(
    "--postprocess",
    metavar="FILE",
    help="what `python -m affjax.calibrate --save=FILE` chose: thresholds, biases, smoothing",
  )
  add(
    "--labels",
    metavar="FILE_OR_FOLDER",
    help="of the frames in --test_list: prints the scores over all that are labelled, the missing"
    " ones filled, and over those with a crop",
  )
  try:
    submit(parser.parse_args(argv))
  except (ValueError, OSError) as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  except KeyboardInterrupt:
    sys.exit("interrupted: nothing is written")


if __name__ == "__main__":
  main()
