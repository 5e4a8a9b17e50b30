"""FER+: 48x48 grey photographs of faces with ten crowd votes each.

Barsoum, Zhang, Canton Ferrer & Zhang, 2016, arXiv:1608.01041.
"""

import csv
import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from affjax.labels import EXPRESSION_FERPLUS, EXPRESSION_SEVEN
from tfds_builders import images as image_files
from tfds_builders import progress

VOTE_COLUMNS = (*EXPRESSION_FERPLUS, "unknown", "NF")
SIZE = 48  # pixels
MEMBERS = 50_000  # images in a zip, at most; FER+ has 28,709 for training
MEMBER_BYTES = (
  2**16
)  # of one of them, at most; without compression 18 kB at 16 bits and four channels
# In this order: an image that occurs in several folders stays in the first of them.
FOLDERS = {"test": "FER2013Test", "validation": "FER2013Valid", "train": "FER2013Train"}
# Which images have a hard label. The label itself is the option with the most votes under both.
RULES = ("strict", "official")


def distribution(votes: np.ndarray) -> np.ndarray:
  """Votes as a soft label: unknown and no-face votes removed, the rest scaled to sum to 1.

  Args:
    votes: [10] votes in the order of `VOTE_COLUMNS`.

  Returns:
    [8] float32 in the order of `EXPRESSION_FERPLUS`; zeros if no vote is left.
  """
  known = np.asarray(votes, np.float32)[: len(EXPRESSION_FERPLUS)]
  return known / max(known.sum(), 1)


def majority(votes: np.ndarray, rule: str) -> str | None:
  """Names the class that wins the vote, or None.

  Args:
    votes: [10] votes in the order of `VOTE_COLUMNS`.
    rule: `strict`: more than half of all votes; `official`: what the authors' training code
      (github.com/microsoft/FERPlus, mode "majority") does: options with a single vote are
      dropped, then more than half of the votes that are left.

  Returns:
    One of `VOTE_COLUMNS`, or None where no option has the majority.
  """
  if rule not in RULES:
    raise ValueError(f"majority rule {rule!r}: use one of {RULES}")
  votes = np.asarray(votes)
  counted = np.where(votes > 1, votes, 0) if rule == "official" else votes
  winner = int(counted.argmax())
  return VOTE_COLUMNS[winner] if 2 * counted[winner] > counted.sum() else None


def is_dev(name: str) -> bool:
  """Whether a training image is of the tenth on which choices are made: by hash of its name."""
  return int(hashlib.md5(name.encode()).hexdigest(), 16) % 10 == 0


def read_votes(path: Path) -> dict[str, dict[str, np.ndarray]]:
  """Reads `fer2013new.csv`.

  Returns:
    Usage column -> image name -> [10] votes. Rows without an image name (removed by the
    authors) are left out; of a name that occurs twice the first row counts.

  Raises:
    ValueError: names the file, the line, the column and the value.
  """
  if not path.is_file():
    raise ValueError(f"{path}: no such file: it is of github.com/microsoft/FERPlus")
  votes: dict[str, dict[str, np.ndarray]] = {}
  with path.open(newline="", encoding="utf-8") as f:
    reader = csv.DictReader(f)
    try:
      missing = {"Usage", "Image name", *VOTE_COLUMNS} - set(reader.fieldnames or ())
      if missing:
        raise ValueError(f"{path}: no column {sorted(missing)}; is this the FER+ fer2013new.csv?")
      for row in reader:
        if row["Image name"]:
          numbers = _votes_of(row, f"{path}:{reader.line_num}")
          votes.setdefault(row["Usage"], {}).setdefault(row["Image name"], numbers)
    except (csv.Error, UnicodeDecodeError) as e:
      raise ValueError(f"{path}:{reader.line_num + 1}: not a CSV file: {e}") from None
  return votes


def _votes_of(row: Mapping[str, str | None], where: str) -> np.ndarray:
  for column in VOTE_COLUMNS:
    if not re.fullmatch(r"\d{1,3}", row[column] or "", re.ASCII):
      raise ValueError(f"{where}: {column} {row[column]!r}: use a number of votes, such as 7")
  return np.array([int(row[column]) for column in VOTE_COLUMNS])


def read_images(source: Path, folder: str) -> Iterator[tuple[str, bytes]]:
  """Yields (file name, PNG bytes), sorted by name, from `source/folder/` or `source/folder.zip`.

  Raises:
    ValueError: a link leads out of the source, or the zip is damaged or holds what is absurd.
  """
  archive = source / f"{folder}.zip"
  if (source / folder).is_dir():
    for path in sorted((source / folder).glob("*.png")):
      yield path.name, image_files.read(image_files.inside(source, path))
  elif archive.is_file():
    try:
      yield from _read_zip(image_files.inside(source, archive), folder)
    except (
      zipfile.BadZipFile,
      zlib.error,
      OSError,
      EOFError,
      NotImplementedError,
      ValueError,
    ) as e:
      # One line, whatever the names in it are.
      why = "".join(c if c.isprintable() else "?" for c in str(e))
      raise ValueError(f"{archive}: {why or 'it ends too early'}") from e


def _read_zip(path: Path, folder: str) -> Iterator[tuple[str, bytes]]:
  """Yields the members `FOLDER/NAME.png` and `NAME.png`; others are left alone."""
  with zipfile.ZipFile(path) as archive:
    plain = re.compile(rf"(?:{folder}/)?([^/\\]+\.png)")
    found = [(plain.fullmatch(member.filename), member) for member in archive.infolist()]
    found = sorted(((match[1], member) for match, member in found if match), key=lambda x: x[0])
    if len(found) > MEMBERS:
      raise ValueError(f"{len(found):,} images; {folder} has at most {MEMBERS:,}")
    for _, member in found:
      _check_member(member)
    for name, member in found:
      with archive.open(member) as file:
        # So many and no more: `archive.read` unpacks all that a member holds, whatever size it says
        # it has.
        yield name, file.read(member.file_size)


def _check_member(member: zipfile.ZipInfo) -> None:
  """Raises ValueError unless a member may be unpacked."""
  if member.flag_bits & 1:
    raise ValueError(f"{member.filename} is encrypted")
  if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    raise ValueError(f"{member.filename} is neither stored nor deflated: zip it anew")
  if member.file_size > MEMBER_BYTES:
    raise ValueError(
      f"{member.filename} has {member.file_size:,} bytes; an image of {SIZE}x{SIZE} pixels has at"
      f" most {MEMBER_BYTES:,}"
    )


class Builder(tfds.core.GeneratorBasedBuilder):
  """Splits `train`, `dev` (a tenth of its images), `validation` and, where present, `test`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "Votes, soft labels, two majority rules, dev split."}
  draws_progress = True
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  A folder with `fer2013new.csv` (github.com/microsoft/FERPlus) and `FER2013Train`,
  `FER2013Valid` (and `FER2013Test`) as folders of PNG files or as zips of them, as that
  repository's script makes from Kaggle's FER2013. Then:
    python -m affjax.data.prepare ferplus --source=FOLDER
  """

  def megabytes(self, source: Path | None) -> float:
    """About what a build of all 35,887 images takes on disk, in 1e6 bytes."""
    return 80

  def _info(self) -> tfds.core.DatasetInfo:
    scalar = lambda: tfds.features.Tensor(shape=(), dtype=np.float32)
    classes = len(EXPRESSION_FERPLUS)
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(shape=(SIZE, SIZE, 1), encoding_format="png"),
          "key": tfds.features.Text(),
          "labels": {"expression": tfds.features.Tensor(shape=(classes,), dtype=np.float32)},
          "mask": {
            "expression": scalar(),
            **{f"expression_{rule}": scalar() for rule in RULES},
          },
          "votes": tfds.features.Tensor(shape=(len(VOTE_COLUMNS),), dtype=np.float32),
        }
      ),
      metadata=tfds.core.MetadataDict(
        {
          "labels": {"expression": list(EXPRESSION_FERPLUS)},
          # Hard labels exist under these rules only, and only these classes are scored.
          "scoring": {"expression": {"rules": list(RULES), "classes": list(EXPRESSION_SEVEN)}},
        }
      ),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
    source = Path(dl_manager.manual_dir)
    votes: dict[str, np.ndarray] = {}
    for rows in read_votes(image_files.inside(source, source / "fer2013new.csv")).values():
      votes.update(rows)
    images: dict[str, dict[str, bytes]] = {}
    seen: set[str] = set()
    for split, folder in FOLDERS.items():
      images[split] = {}
      for name, encoded in read_images(source, folder):
        digest = hashlib.md5(encoded).hexdigest()
        # The same picture in training and evaluation would be scored by memory.
        if name in votes and digest not in seen:
          images[split][name] = encoded
          seen.add(digest)
    for split in ("train", "validation"):
      if not images[split]:
        raise ValueError(f"{source}: no images in {FOLDERS[split]} or {FOLDERS[split]}.zip")
    parts = {
      "train": {n: i for n, i in images["train"].items() if not is_dev(n)},
      "dev": {n: i for n, i in images["train"].items() if is_dev(n)},
      "validation": images["validation"],
      "test": images["test"],
    }
    return {s: self._generate_examples(s, part, votes) for s, part in parts.items() if part}

  def _generate_examples(
    self, split: str, images: Mapping[str, bytes], votes: Mapping[str, np.ndarray]
  ) -> Iterator[tuple[str, dict]]:
    for name, encoded in progress.bar(images.items(), split):
      image_files.check(name, encoded, (SIZE, SIZE))
      soft = distribution(votes[name])
      hard = {rule: majority(votes[name], rule) in EXPRESSION_SEVEN for rule in RULES}
      yield (
        name,
        {
          "image": io.BytesIO(encoded),
          "key": f"{split}/{name}",
          "labels": {"expression": soft},
          "mask": {
            "expression": np.float32(soft.sum() > 0),
            **{f"expression_{rule}": np.float32(hard[rule]) for rule in RULES},
          },
          "votes": votes[name].astype(np.float32),
        },
      )
