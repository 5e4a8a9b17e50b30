"""Official files -> sharded records, with a table of what they hold.

  python -m affjax.data.prepare s_aff_wild2 --source=FOLDER
  python -m affjax.data.prepare image_folder --config=my_set --source=FOLDER
  python -m affjax.data.prepare s_aff_wild2 --verify

What --source should hold is in tfds_builders/NAME/README.md. A set that is there already is not
built again: its table is printed.
"""

import argparse
import ast
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core.utils import shard_utils

import tfds_builders
from affjax.data import manifest, records
from tfds_builders import shards

SPLITS = ("train", "dev", "validation", "test")  # in this order in a table; others after them
# Where a set is built that replaces another, and where that goes meanwhile.
_ASIDE, _BEFORE = ".overwrite-", "before"
# What a table calls the counts of a summary: (group, name) -> as text.
Cells = dict[tuple[str, str], str]


def prepare(build: Any, source: str | None = None, overwrite: bool = False) -> dict[str, Any]:
  """Builds a data set unless it is there, and returns its summary.

  Two processes that ask for the same data set build it once: the second waits for the first.

  Args:
    build: from `records.builder`.
    source: folder of the official files, for data sets that need them.
    overwrite: build it even if it is there; what is there stays until the new one is whole.

  Raises:
    ValueError: files are needed and `source` does not name a folder, or they are not as expected,
      or there is no room or no leave to write. Nothing of the build is kept then, but what
      `build.kept`, if there is such a method, counts.
  """
  source = source and os.path.expanduser(source)
  folder = Path(build.data_dir)
  makes = overwrite or not records.is_prepared(build)
  if makes:
    _check_source(build, source)
  with contextlib.ExitStack() as held:
    if makes or os.access(folder.parent, os.W_OK):
      with records.storing(folder, f"data set {build.name!r}", lambda: _kept(build)):
        # An explicit level of names is needed: `data_dir` may not exist and `folder` must not yet.
        held.enter_context(records.lock(folder.parent / f".{build.name}.lock"))
        if makes:
          _make(build, source, overwrite, folder)
    # It may have been made by another process, or anew, since `build` looked.
    build.info.read_from_directory(folder)
    return records.summary(build)


def _make(build: Any, source: str | None, overwrite: bool, folder: Path) -> None:
  """Builds, under the lock, what is not there or is to be replaced."""
  _sweep(folder)
  if records.is_prepared(build) and overwrite:
    with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=folder.parent) as aside:
      anew = type(build)(data_dir=aside, config=build.builder_config)
      _build(anew, source, folder)
      folder.rename(Path(aside) / _BEFORE)
      Path(anew.data_dir).rename(folder)
  elif folder.exists() and not records.is_prepared(build):
    raise ValueError(f"{folder} is damaged, there is no {records.INFO} in it: delete it first")
  elif not records.is_prepared(build):
    _build(build, source, folder)


def _kept(build: Any) -> str:
  """What a build that ended has left for the next one; empty: nothing."""
  count = build.kept() if hasattr(build, "kept") else 0
  return f"{count} whole videos are kept" if count else ""


def _sweep(folder: Path) -> None:
  """Removes what killed builds of a set have left, and puts back what one was to replace."""
  for left in folder.parent.glob(f"{_ASIDE}*"):
    if (left / _BEFORE).is_dir() and not folder.exists():
      (left / _BEFORE).rename(folder)
    shutil.rmtree(left)
  for left in folder.parent.glob(f"incomplete.*_{folder.name}"):  # TFDS's name
    shutil.rmtree(left)


def _check_source(build: Any, source: str | None) -> None:
  if not records.needs_source(build):
    return
  what = " ".join(build.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
  if source is None and records.is_prepared(build):
    raise ValueError(f"--overwrite needs --source=FOLDER. {what}")
  if source is None:
    records.shards(build, "")  # raises the message that says what to do
  if not Path(source).is_dir():
    raise ValueError(f"--source={source}: no such folder. {what}")
  if not any(Path(source).iterdir()):
    raise ValueError(f"--source={source}: nothing is in it. {what}")


class _Files(shard_utils.ShardConfig):
  """As many files as reading is quick from. (TFDS 4.9.10 does not heed the sizes it is given.)"""

  def get_number_shards(
    self, total_size: int, num_examples: int, uses_precise_sharding: bool = True
  ) -> int:
    return shards.count(num_examples)


class _Download(tfds.download.DownloadConfig):
  """TFDS's, but for the number of files."""

  def get_shard_config(self) -> shard_utils.ShardConfig:
    return _Files()


def _build(build: Any, source: str | None, folder: Path) -> None:
  """Builds; `folder` is where the data set will be in the end."""
  # The first ancestor that exists tells the space that is left.
  exists = next(p for p in folder.parents if p.exists())
  free = shutil.disk_usage(exists).free / 1e6
  needed = build.megabytes(source and Path(source)) if hasattr(build, "megabytes") else 0
  about = f"about {max(needed, 1):.0f} MB" if needed else "size unknown"
  print(f"{build.name}: building in {folder} ({about}; {free / 1e3:.0f} GB free)", file=sys.stderr)
  if free < needed:
    raise ValueError(
      f"{build.name} needs about {needed:.0f} MB and {exists} has {free:.0f} MB left: make room, or"
      " name another place with --data_dir"
    )
  if hasattr(build, "kept_in"):
    build.kept_in = folder.parent  # also where the set is to replace another
  if getattr(build, "draws_progress", False):
    tfds.disable_progress_bar()
  download = _Download(manual_dir=source)
  # TFDS prints to stdout that it downloads, which it does not.
  with contextlib.redirect_stdout(io.StringIO()):
    build.download_and_prepare(file_format="array_record", download_config=download)
  try:
    for split in build.info.splits:
      records.shards(build, split).confirm()
    manifest.write(build)
  except BaseException:
    shutil.rmtree(build.data_dir)
    raise


def table(
  summary: Mapping[str, Any],
  published: Mapping[str, Any] | None = None,
  described: Mapping[str, Any] | None = None,
) -> str:
  """The counts of a summary as text, beside published ones.

  Args:
    summary: of `records.summary`.
    published: split -> counts as in the summary, as far as they are known.
    described: the data set's metadata. `unlabelled`: split -> rows without any label; `missing`:
      split -> `count` of the rows left out because there is no such image, and `examples`.
      `report`: further lines.

  Returns:
    One line a label, one or two columns a split: images, valid labels, of units positives /
    negatives. Lines of zeros are left out.
  """
  described, published = described or {}, published or {}
  order = sorted(summary["splits"], key=lambda split: (*SPLITS, split).index(split))
  unlabelled = described.get("unlabelled", {})
  counted = {s: _cells(summary["splits"][s], unlabelled.get(s)) for s in order}
  expected = {s: _cells(c := published.get(s, {}), c.get("unlabelled")) for s in order}
  differ = [
    (split, label)
    for split in order
    for label, known in expected[split].items()
    if known != counted[split].get(label, "0")
  ]
  lines = [["", *(head for s in order for head in [s, *["published"] * bool(expected[s])])]]
  group = ""
  for label in dict.fromkeys(label for split in order for label in counted[split]):
    row = []
    for split in order:
      row.append(counted[split].get(label, ""))
      if expected[split]:
        row.append(expected[split].get(label, "") + " <-" * ((split, label) in differ))
    if not any(cell.strip("0 /") for cell in row):
      continue
    if label[0] != group:
      group = label[0]
      lines.append([group, *[""] * len(row)])
    lines.append([f"  {label[1]}" if group else label[1], *row])
  text = _aligned(lines)
  if not any(group for split in order for group, _ in counted[split]):
    text.append("nothing is labelled: a model can predict on this set, not be scored")
  for split, lost in described.get("missing", {}).items():
    more = ", ..." if lost["count"] > len(lost["examples"]) else ""
    text.append(
      f"{split}: {lost['count']} rows left out, their image is missing:"
      f" {', '.join(lost['examples'])}{more}"
    )
  if further := described.get("report"):
    text += ["", *further]
  if differ:
    some = ", ".join(f"{split} {name}" for split, (_, name) in differ[:6])
    more = ", ..." if len(differ) > 6 else ""
    text.append(f"{len(differ)} published counts differ (<-): {some}{more}")
  elif any(expected.values()):
    text.append("all published counts agree")
  return "\n".join(text)


def _cells(counts: Mapping[str, Any], unlabelled: int | None) -> Cells:
  """The counts of one split, published ones perhaps in part; tasks without labels are left out."""
  cells: Cells = {}
  if "images" in counts:
    cells["", "images"] = _number(counts["images"])
  if unlabelled is not None:
    cells["", "without any label"] = _number(unlabelled)
  va, expression, au = (counts.get(task, {}) for task in ("va", "expression", "au"))
  if any(va.get("labelled", {}).values()):
    cells |= {("valence and arousal", n): _number(count) for n, count in va["labelled"].items()}
  if expression.get("labelled"):
    cells["expression", "labelled"] = _number(expression["labelled"])
    for tally in (name for name in expression if name != "labelled"):
      # By the votes of a data set, or by the rules under which there is one winner.
      group = "expression" if tally == "votes" else tally.replace("_", ", ")
      cells |= {(group, name): _number(count) for name, count in expression[tally].items()}
  if any(au.get("labelled", {}).values()):
    for unit, on in au["positive"].items():
      off = au["labelled"][unit] - on
      cells["action units, on / off", unit] = f"{_number(on)} / {_number(off)}"
  return cells


def _number(count: float) -> str:
  return f"{count:.0f}" if count == round(count) else f"{count:.1f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
  """Columns of one width, names to the left and numbers to the right, marks beside the numbers."""
  columns = []
  for column in zip(*lines, strict=True):
    marked = any(cell.endswith("<-") for cell in column)
    cells = [c if c.endswith("<-") or not marked else f"{c}   " for c in column]
    width = max(map(len, cells))
    columns.append([c.rjust(width) if columns else c.ljust(width) for c in cells])
  return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]


def _summaries() -> str:
  """One line a data set: its name and what its builder says of itself."""
  lines = []
  for name in records.names():
    file = Path(tfds_builders.__path__[0]) / name / f"{name}_dataset_builder.py"
    about = ast.get_docstring(ast.parse(file.read_text())) or ""
    lines.append(f"  {name:16} {about.splitlines()[0]}")
  return "data sets:\n" + "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.data.prepare",
    description=__doc__,
    epilog=_summaries(),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("name", metavar="NAME", help="a data set, see below")
  parser.add_argument("--source", metavar="FOLDER", help="folder of the official files")
  parser.add_argument(
    "--config",
    default="",
    metavar="NAME",
    help="a config of the data set; default its first. Of image_folder: a name of your choice",
  )
  parser.add_argument(
    "--data_dir",
    metavar="FOLDER",
    help="where prepared data lives; default TFDS's: $TFDS_DATA_DIR or ~/tensorflow_datasets",
  )
  parser.add_argument("--overwrite", action="store_true", help="build it again if it is there")
  parser.add_argument(
    "--verify", action="store_true", help="compare what is there to what was written, and stop"
  )
  arguments = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # TFDS warns of configs that users name
  build = None
  try:
    build = records.builder(arguments.name, arguments.config, arguments.data_dir)
    if arguments.verify:
      sys.exit(0 if manifest.verify(build) else 1)
    there = records.is_prepared(build) and not arguments.overwrite
    summary = prepare(build, arguments.source, arguments.overwrite)
    for split in build.info.splits:
      records.shards(build, split).check()
  except (ValueError, FileNotFoundError) as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  except KeyboardInterrupt:
    kept = _kept(build)
    sys.exit(
      f"interrupted: {kept}; the same command goes on from there"
      if kept
      else "interrupted: nothing is kept of this build; the same command begins again"
    )
  config = f"/{build.builder_config.name}" if build.builder_config else ""
  again = ": there already (--overwrite builds it again)" if there and arguments.source else ""
  print(f"{build.name}{config} {build.version} in {build.data_dir}{again}")
  print(f"fingerprint {summary['fingerprint'][:12]}\n")
  print(table(summary, getattr(build, "published", None), records.metadata(build)))


if __name__ == "__main__":
  main()
