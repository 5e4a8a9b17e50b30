"""The sound of a data set's videos, beside its records: windows of it around any frame.

  python -m affjax.data.sound aff_wild2 --config=va --source=FOLDER

The source is a folder with the video files (.mp4, .avi, .mkv, .mov, anywhere in it); those of
`NAME_left` and `NAME_right` are both NAME. It takes as long as decoding every frame does, because
that is how the times of frames are found, and 115 MB an hour at the default rate. Whatever is done
is kept: the same command goes on after it was stopped, and takes in files that come later.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from multiprocessing import pool
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from affjax.data import records
from tfds_builders import progress
from tfds_builders.aff_wild2 import videos

# In the folder of a prepared data set: the sound, and what there is of it, which is written last.
FOLDER = "affjax_sound"
SUMMARY = "affjax_sound.json"
RATES = (1000, 192_000)  # samples a second: the least and the most
_PARTIAL = "partial.json"  # in FOLDER, the summary of what is done so far
_NAMED = 5  # files named in a line
_NUMBERS = ("bytes", "frames", "fps", "samples")
_AGAIN = "delete it and run `python -m affjax.data.sound NAME --source=FOLDER` again"


class Sound:
  """The sound of a data set's videos. Files are mapped for as long as it takes to read from them.

  Args:
    folder: of the prepared data set, `build.data_dir`.

  Attributes:
    rate: samples a second.

  Raises:
    ValueError: there is none, or what describes it cannot be read.
  """

  def __init__(self, folder: str | os.PathLike[str]) -> None:
    self._folder = Path(folder) / FOLDER
    found = read(folder)
    self.rate: int = found["rate"]
    self._media: dict[str, Any] = found["media"]
    # A row that is of no video has no sound.
    self._of: dict[str, str | None] = {"": None, **found["videos"]}

  def windows(
    self,
    video: Sequence[bytes | str] | np.ndarray,
    frame: Sequence[int] | np.ndarray,
    seconds: float,
    causal: bool = False,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Sound around frames.

    Args:
      video: [n] names, as the records have them.
      frame: [n] numbers of frames, from 1. Beyond the last that could be decoded the times go on at
        the mean frame rate.
      seconds: length of a window.
      causal: it ends with the sample at the time of the frame, instead of having it in the middle.

    Returns:
      [n, samples] float32 in [-1, 1), zeros before the start and after the end; [n] bool, whether
      the video has any sound: if not, all is zeros.

    Raises:
      ValueError: a video is not of this data set, a number is less than 1, a file is damaged.
    """
    length = round(seconds * self.rate)
    if length < 1:
      raise ValueError(f"windows of {seconds} seconds: use at least {1 / self.rate:.2g}")
    names, of_row = np.unique(np.asarray(video), return_inverse=True)
    numbers = np.asarray(frame)
    windows = np.zeros((len(numbers), length), np.float32)
    present = np.zeros(len(numbers), bool)
    for i, name in enumerate(names.tolist()):
      rows = np.flatnonzero(of_row == i)
      stem = self._stem(name.decode() if isinstance(name, bytes) else name)
      if stem and self._media[stem]["samples"]:
        starts = self._samples(stem, numbers[rows]) - (length - 1 if causal else length // 2)
        _cut(self._open(f"{stem}.npy"), starts, windows, rows)
        present[rows] = True
    return windows, present

  def _stem(self, name: str) -> str | None:
    """The media file of a video; None: there was none."""
    if name not in self._of:
      raise ValueError(f"{self._folder.parent / SUMMARY}: video {name!r} is not of this data set")
    return self._of[name]

  def _samples(self, stem: str, frame: np.ndarray) -> np.ndarray:
    """[n] numbers of the samples at the times of frames."""
    if (frame < 1).any():
      raise ValueError(f"video {stem!r}, frame {frame.min()}: frames are numbered from 1")
    times, last = self._open(f"{stem}.times.npy"), self._media[stem]["frames"]
    beyond = np.maximum(frame - last, 0) / self._media[stem]["fps"]
    return np.rint((times[np.minimum(frame, last) - 1] + beyond) * self.rate).astype(np.int64)

  def _open(self, name: str) -> np.ndarray:
    try:
      return np.load(self._folder / name, mmap_mode="r")
    except (OSError, ValueError, EOFError) as e:
      raise ValueError(f"{self._folder / name} cannot be read ({e}): {_AGAIN}") from e


def _cut(sound: np.ndarray, starts: np.ndarray, windows: np.ndarray, rows: np.ndarray) -> None:
  """Fills rows of windows from [samples] int16; what lies outside of it stays as it is."""
  length = windows.shape[1]
  for row, start in zip(rows.tolist(), starts.tolist(), strict=True):
    piece = sound[max(start, 0) : max(start + length, 0)]
    skipped = max(-start, 0)
    windows[row, skipped : skipped + len(piece)] = piece / np.float32(32768)


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """What there is beside a prepared data set.

  Returns:
    `rate`; `videos`: name in the records -> name of the media file, or None; `media`: that name ->
    `bytes` of the file that it was made from, `frames` and their mean rate `fps`, `samples`, and
    `files`: name in `FOLDER` -> `size` and `sha256`; `beyond`: video -> rows whose frame is beyond
    the last that can be decoded.

  Raises:
    ValueError: there is nothing, or it cannot be read.
  """
  path = Path(folder) / SUMMARY
  if not path.is_file():
    raise ValueError(
      f"{folder} has no sound: run `python -m affjax.data.sound NAME --source=FOLDER`"
    )
  if not (found := _parsed(path)):
    raise ValueError(f"{path} cannot be read: {_AGAIN}")
  return found


def _parsed(path: Path) -> dict[str, Any]:
  """A summary; empty if it is not there, or is damaged."""
  try:
    found = records.read_json(path)
    media = found["media"]
    numbers = [found["rate"], *(of[name] for of in media.values() for name in _NUMBERS)]
    numbers += [made["size"] for of in media.values() for made in of["files"].values()]
    whole = {stem for stem in found["videos"].values() if stem} <= media.keys()
  except (ValueError, AttributeError, KeyError, TypeError):
    return {}
  return found if whole and all(isinstance(n, int | float) for n in numbers) else {}


def extract(build: Any, source: str | os.PathLike[str], rate: int = videos.RATE) -> dict[str, Any]:
  """Writes the sound of a data set's videos beside it, but for what is there already.

  Args:
    build: of a prepared data set whose records have the fields `video` and `frame`.
    source: folder of the videos.
    rate: samples a second.

  Returns:
    What `read` returns.

  Raises:
    ValueError: no video is found, or some cannot be decoded; the others are kept.
  """
  if not RATES[0] <= rate <= RATES[1]:
    raise ValueError(f"--rate={rate}: use {RATES[0]} to {RATES[1]} samples a second")
  frames = _frames(build)
  found = videos.find(Path(os.path.expanduser(source)))
  folder = Path(build.data_dir)
  try:
    with records.lock(folder / FOLDER / ".lock"):
      done = _done(folder, rate, found)
      known = {*found, *done}
      of = {name: _media(name, known) for name in sorted(frames)}
      stems = sorted({stem for stem in of.values() if stem})
      if not stems:
        raise ValueError(
          f"--source={source}: no file ({', '.join(videos.SUFFIXES)}) has the name of a video of"
          f" {build.name}, such as {videos.base(min(frames))!r}"
        )
      media = {stem: done[stem] for stem in stems if stem in done}
      _make(folder, rate, media, {stem: found[stem] for stem in stems if stem not in done})
      facts = {"rate": rate, "videos": of, "media": {stem: media[stem] for stem in stems}}
      facts["beyond"] = _beyond(frames, facts)
      records.store(folder / SUMMARY, json.dumps(facts, indent=1).encode())
      _sweep(folder, media)
  except OSError as e:
    raise ValueError(
      f"{folder / FOLDER}: the sound cannot be written ({e.strerror}): make room or give leave to"
      " write there, and run the same command again; what is done is kept"
    ) from e
  return facts


def _frames(build: Any) -> dict[str, np.ndarray]:
  """Video -> [rows] numbers of its frames, of all splits."""
  found: dict[str, list[np.ndarray]] = {}
  for split in build.info.splits or ("train",):  # of what is not prepared, `records` says so
    table = records.label_table(build, split)
    lacks = [name for name in ("video", "frame") if name not in table]
    if lacks:
      raise ValueError(f"data set {build.name!r}: its records have no {' and no '.join(lacks)}")
    names, of_row = np.unique(table["video"], return_inverse=True)
    for i, name in enumerate(names.tolist()):
      found.setdefault(name.decode(), []).append(table["frame"][of_row == i])
  frames = {name: np.concatenate(parts) for name, parts in found.items() if name}
  if not frames:
    raise ValueError(f"data set {build.name!r}: its records name no video")
  for name, numbers in frames.items():
    if (least := numbers.min()) < 1:
      raise ValueError(
        f"data set {build.name!r}: video {name!r} has a frame {least}; they are numbered from 1"
      )
  return frames


def _beyond(frames: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, int]:
  """Video -> rows whose frame is beyond the last that could be decoded, where there are any."""
  of, media = facts["videos"], facts["media"]
  rows = {
    name: int((numbers > media[of[name]]["frames"]).sum())
    for name, numbers in sorted(frames.items())
    if of[name]
  }
  return {name: count for name, count in rows.items() if count}


def _media(video: str, stems: Collection[str]) -> str | None:
  """The name of a video's file among these: its own, else without `_left` or `_right`."""
  return next((stem for stem in (video, videos.base(video)) if stem in stems), None)


def _done(folder: Path, rate: int, found: Mapping[str, Path]) -> dict[str, Any]:
  """Media file -> facts, of those that were made of the files that are there, and are whole."""
  kept = [_parsed(path) for path in (folder / SUMMARY, folder / FOLDER / _PARTIAL)]
  media: dict[str, Any] = {}
  for facts in kept:
    media |= facts["media"] if facts and facts["rate"] == rate else {}
  size = lambda path: path.stat().st_size if path.is_file() else -1
  return {
    stem: of
    for stem, of in media.items()
    if all(size(folder / FOLDER / name) == made["size"] for name, made in of["files"].items())
    and (stem not in found or size(found[stem]) == of["bytes"])
  }


def _sweep(folder: Path, media: Mapping[str, Any]) -> None:
  """Removes what is of other files, and what a killed process has left."""
  keep = {name for of in media.values() for name in of["files"]}
  for path in (folder / FOLDER).iterdir():
    ours = path.name == _PARTIAL or path.suffix == ".npy" or path.suffix[1:].isdecimal()
    if ours and path.name not in keep:
      path.unlink()


def _make(folder: Path, rate: int, media: dict[str, Any], files: Mapping[str, Path]) -> None:
  """Adds files to what is known of the media, several at a time; it is kept after each.

  Raises:
    ValueError: some cannot be decoded.
  """
  if not files:
    return
  keep = lambda: records.store(
    folder / FOLDER / _PARTIAL,
    json.dumps({"rate": rate, "videos": {}, "media": media}).encode(),
  )
  keep()
  (folder / SUMMARY).unlink(missing_ok=True)  # until all is there again
  megabytes = {stem: -(-path.stat().st_size // 10**6) for stem, path in files.items()}
  broken: list[str] = []
  work = lambda stem: (stem, *_extracted(files[stem], folder / FOLDER, rate))
  with (
    # Decoding holds no lock of Python's.
    pool.ThreadPool(os.cpu_count()) as workers,
    progress.bar(range(sum(megabytes.values())), "sound", "MB") as bar,
  ):
    for stem, made, wrong in workers.imap_unordered(work, files):
      bar.update(megabytes[stem])
      if wrong:
        broken.append(wrong)
      else:
        media[stem] = made
        keep()
  if broken:
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    raise ValueError(
      f"{len(broken)} of {len(files)} videos: {'; '.join(sorted(broken)[:_NAMED])}{more} (mend or"
      " remove them, and run the same command again: the others are done)"
    )


def _extracted(path: Path, folder: Path, rate: int) -> tuple[dict[str, Any], str]:
  """Writes the times and the sound of a file; its facts, and what is wrong with it, if anything."""
  try:
    times, sound = videos.times(path), videos.sound(path, rate)
    # Of a single frame, or of frames at one time, there is no mean rate.
    fps = (len(times) - 1) / times[-1] if times[-1] > 0 else videos.rate(path)
  except ValueError as e:
    return {}, str(e)
  files = {f"{path.stem}.npy": sound, f"{path.stem}.times.npy": times.astype(np.float32)}
  for name, values in files.items():
    content = io.BytesIO()
    np.save(content, values)
    records.store(folder / name, content.getvalue())
  return {
    "bytes": path.stat().st_size,
    "frames": len(times),
    "fps": float(fps),
    "samples": len(sound),
    "files": {name: records.fingerprint(folder / name) for name in files},
  }, ""


def _report(folder: Path, facts: Mapping[str, Any]) -> str:
  """What there is and what is not, a line each."""
  media, of, beyond = facts["media"], facts["videos"], facts["beyond"]
  hours = sum(m["samples"] for m in media.values()) / facts["rate"] / 3600
  size = sum(made["size"] for m in media.values() for made in m["files"].values()) / 1e6
  lines = [
    f"{len(media)} files of {len(of)} videos: {hours:,.2f} hours of sound at {facts['rate']} Hz,"
    f" {size:,.1f} MB in {folder / FOLDER}"
  ]
  silent = [stem for stem, m in media.items() if not m["samples"]]
  lost = [name for name, stem in of.items() if not stem]
  for what, which in (("files without sound", silent), ("videos without a file", lost)):
    if which:
      more = ", ..." if len(which) > _NAMED else ""
      lines.append(f"{len(which)} {what}: {', '.join(which[:_NAMED])}{more}")
  if beyond:
    lines.append(
      f"{sum(beyond.values())} rows of {len(beyond)} videos are beyond the last frame that can be"
      " decoded: their times go on at the mean frame rate"
    )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.data.sound",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("name", metavar="NAME", help="a prepared data set")
  parser.add_argument("--config", default="", metavar="NAME", help="a config of the data set")
  parser.add_argument("--source", required=True, metavar="FOLDER", help="folder of the videos")
  parser.add_argument(
    "--rate", type=int, default=videos.RATE, help="samples a second; default %(default)s"
  )
  parser.add_argument("--data_dir", metavar="FOLDER", help="where prepared data lives")
  arguments = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # TFDS warns of configs that users name
  try:
    build = records.builder(arguments.name, arguments.config, arguments.data_dir)
    facts = extract(build, arguments.source, arguments.rate)
  except ValueError as e:
    sys.exit(f"error: {e}")
  except KeyboardInterrupt:
    sys.exit("interrupted: what is done is kept; the same command goes on")
  print(_report(Path(build.data_dir), facts))


if __name__ == "__main__":
  main()
