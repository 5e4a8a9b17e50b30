"""Official files -> sharded records: `python -m affjax.data.prepare ferplus --source=FOLDER`."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from affjax.data import records


def prepare(build: Any, source: str | None = None) -> dict[str, Any]:
  """Builds a data set unless it is there, and returns its summary.

  Two processes that ask for the same data set build it once: the second waits for the first.

  Args:
    build: from `records.builder`.
    source: folder of the official files, for data sets that need them.

  Raises:
    ValueError: files are needed and `source` does not name a folder, or they are not as expected.
  """
  if not records.is_prepared(build) and records.needs_source(build):
    if source is None:
      records.shards(build, "")  # raises the message that says what to do
    if not Path(source).is_dir():
      raise ValueError(f"--source={source}: no such folder. {_one_line(build)}")
  folder = Path(build.data_dir)
  # An explicit level of names is needed: `data_dir` may not exist and `folder` must not yet.
  with records.lock(folder.parent / f".{build.name}.lock"):
    if not records.is_prepared(build):
      _say_size(build, folder)
      if getattr(build, "draws_progress", False):
        tfds.disable_progress_bar()
      download = tfds.download.DownloadConfig(manual_dir=source) if source else None
      build.download_and_prepare(file_format="array_record", download_config=download)
    return records.summary(build)


def _one_line(build: Any) -> str:
  return " ".join((build.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())


def _say_size(build: Any, folder: Path) -> None:
  # Beside `folder`: the first ancestor that exists tells the space that is left.
  exists = next(p for p in folder.parents if p.exists())
  free = shutil.disk_usage(exists).free / 2**30
  megabytes = getattr(build, "expected_megabytes", None)
  about = f"about {megabytes} MB" if megabytes else "size unknown before it is read"
  print(f"{build.name}: building in {folder} ({about}; {free:.0f} GB free)", file=sys.stderr)


def table(summary: dict[str, Any]) -> str:
  """The counts of a summary as text: images, valid labels per task, per class, per unit."""
  lines = []
  for split, counts in summary["splits"].items():
    lines.append(f"{split}: {counts['images']} images")
    for task in (t for t in counts if t != "images"):
      for what, numbers in counts[task].items():
        values = numbers.items() if isinstance(numbers, dict) else [("", numbers)]
        text = "  ".join(f"{name} {number:g}".strip() for name, number in values)
        lines.append(f"  {task} {what.removeprefix(task + '_')}: {text}")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m affjax.data.prepare", description=__doc__)
  parser.add_argument("name", help=f"data set: {', '.join(records.names())}")
  parser.add_argument("--source", help="folder of the official files")
  parser.add_argument("--config", default="", help="a config of the builder; default its first")
  parser.add_argument("--data_dir", help="where prepared data lives; default ~/tensorflow_datasets")
  arguments = parser.parse_args(argv)
  try:
    build = records.builder(arguments.name, arguments.config, arguments.data_dir)
    summary = prepare(build, arguments.source)
  except (ValueError, FileNotFoundError) as e:
    sys.exit(f"error: {e}")
  print(f"{build.name} {build.version} in {build.data_dir}\n{table(summary)}")


if __name__ == "__main__":
  main()
