"""What a prepared data set was written as: sizes and hashes, which later tell what has rotted."""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax.data import packed, records, sound
from tfds_builders import progress

# TFDS's files besides the shards. Tables and summary are not hashed: where they cannot be read they
# are made anew.
_DESCRIBED = (records.INFO, "features.json", records.METADATA)
_NAMED = 5  # records named in a line


@dataclasses.dataclass(frozen=True)
class Damage:
  """A file that is not as it was written.

  Attributes:
    file: its name.
    what: is wrong with it as a whole.
    lost: record -> why it cannot be read.
    of: how many records it should hold; 0: it is none that holds records.
  """

  file: str
  what: str
  lost: dict[int, str] = dataclasses.field(default_factory=dict)
  of: int = 0

  def cells(self) -> list[str]:
    """As a line of a table."""
    if not self.of:
      return [self.file, self.what, "-"]
    lost = f"{len(self.lost)} of {self.of}"
    if self.lost:
      more = ", ..." if len(self.lost) > _NAMED else ""
      lost += f": {', '.join(map(str, list(self.lost)[:_NAMED]))}{more}"
      lost += f" ({next(iter(self.lost.values()))})"
    return [self.file, self.what, lost]


def write(build: Any) -> None:
  """Writes the manifest of a data set that is whole; OSError where that cannot be."""
  folder = Path(build.data_dir)
  names = [name for name in _DESCRIBED if (folder / name).is_file()]
  for split in build.info.splits:
    names += [Path(path).name for path in records.shards(build, split).paths]
  with progress.bar(names, "hashing", "files") as bar:
    known = {name: records.fingerprint(folder / name) for name in bar}
  records.store(folder / records.MANIFEST, json.dumps(known, indent=1).encode())


def verify(build: Any) -> bool:
  """Compares the files of a prepared data set, packed ones too, to what was written; says so.

  A file whose hash is not known is read through instead. A set without a manifest whose records can
  all be read gets one. Nothing else is written.

  Args:
    build: from `records.builder`.

  Returns:
    Whether all is as it was written.

  Raises:
    ValueError: it is not prepared, or its manifest cannot be read.
  """
  opened = [records.shards(build, split) for split in build.info.splits or ("",)]
  folder, known = Path(build.data_dir), records.manifest(build)
  if not known:
    print(f"no {records.MANIFEST} yet: every record is read", file=sys.stderr, flush=True)
  more, damage = _packed(build)
  opened += more
  files = [(shards, number) for shards in opened for number in range(len(shards.paths))]
  with progress.bar(files, "verifying", "files") as bar:
    damage += [found for shards, number in bar if (found := _examine(shards, number))]
  damage += _described(folder, known) + _caches(build) + _sound(folder)
  if damage:
    print(_table(damage))
    return False
  paths = [shards.paths[number] for shards, number in files]
  size = sum(
    Path(path).stat().st_size for path in (*paths, *(folder / name for name in _DESCRIBED))
  )
  done = "as they were written"
  if not known:
    write(build)
    done = f"every record can be read; {records.MANIFEST} is written"
  print(f"{len(paths) + len(_DESCRIBED)} files, {size / 1e6:,.1f} MB: {done}")
  return True


def _packed(build: Any) -> tuple[list[records.Shards], list[Damage]]:
  """All packed shards, and those that cannot be told because what describes them is damaged."""
  found, damage = [], []
  for split in build.info.splits:
    for path, pixels in packed.there(build, split).items():
      try:
        found.append(packed.find(build, split, pixels))
      except ValueError:
        damage.append(Damage(path.name, "cannot be read: delete it and pack the set again"))
  return [shards for shards in found if shards is not None], damage


def _examine(shards: records.Shards, number: int) -> Damage | None:
  """What is wrong with a file of records, if anything."""
  path, length = Path(shards.paths[number]), shards.lengths[number]
  what = _differs(path, *shards.written[number]) if shards.written else ""
  if shards.written and not what:
    return None
  start = sum(shards.lengths[:number])
  out = np.empty((*(shards.image_size or (64, 64)), 3), np.uint8)
  lost = {}
  for row in range(start, start + length):
    try:
      shards.image(row, out)
    except ValueError as e:
      lost[row - start] = str(e).removeprefix(f"{shards.where(row)}: ")
  if lost or what:
    return Damage(path.name, what or "records cannot be read", lost, length)
  return None


def _differs(path: Path, size: int, sha256: str) -> str:
  """How a file differs from what was written; empty: it does not."""
  try:
    found = records.fingerprint(path)
  except OSError as e:
    return f"{e.strerror}"
  if found["size"] != size:
    return f"{found['size']} bytes, {size} were written"
  return "" if found["sha256"] == sha256 else "other bytes than were written"


def _described(folder: Path, known: Mapping[str, Any]) -> list[Damage]:
  """What is wrong with TFDS's own files."""
  found = {name: _differs(folder / name, **known[name]) for name in _DESCRIBED if name in known}
  found |= {n: "missing" for n in _DESCRIBED if n not in known and not (folder / n).is_file()}
  return [Damage(name, what) for name, what in found.items() if what]


def _caches(build: Any) -> list[Damage]:
  """What is wrong with what is made from the records."""
  folder, damaged = Path(build.data_dir), []
  for split in build.info.splits:
    name = records.TABLE.format(split)
    if (folder / name).is_file() and records.kept_table(build, split) is None:
      damaged.append(name)
  if (folder / records.SUMMARY).is_file():
    try:
      records.read_json(folder / records.SUMMARY)
    except ValueError:
      damaged.append(records.SUMMARY)
  return [Damage(name, "damaged; made anew when it is needed") for name in damaged]


def _sound(folder: Path) -> list[Damage]:
  """What is wrong with the sound of its videos, if it has any."""
  if not (folder / sound.SUMMARY).is_file():
    return []
  again = "delete it and extract the sound again"
  try:
    media = sound.read(folder)["media"]
  except ValueError:
    return [Damage(sound.SUMMARY, f"cannot be read: {again}")]
  made = {f"{sound.FOLDER}/{n}": of for m in media.values() for n, of in m["files"].items()}
  found = {name: _differs(folder / name, **of) for name, of in made.items()}
  return [Damage(name, f"{what}: {again}") for name, what in found.items() if what]


def _table(damage: Sequence[Damage]) -> str:
  """A line a file, and what to do."""
  lines = [["file", "what", "records lost"], *(found.cells() for found in damage)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
  ]
  lost = sum(len(found.lost) for found in damage)
  text.append(f"{len(damage)} files are damaged, {lost} records cannot be read: restore the files,")
  text.append("prepare the set again (--overwrite), or train without these records:")
  text.append("--config.data.unreadable=skip")
  return "\n".join(text)
