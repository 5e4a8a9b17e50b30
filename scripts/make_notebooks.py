"""Executes the notebooks and keeps what they show: `python scripts/make_notebooks.py`.

Each runs from its first cell to its last in a kernel of its own, all of them in one folder that has
nothing of the checkout but what they name: they share what is trained. What they said before is
replaced. Nothing is kept that another day or another machine would say otherwise without need:
times of cells, progress, versions, pictures in other formats.

  python scripts/make_notebooks.py --only 03
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
CELL = 900  # seconds that a cell may take: on a machine that does other things as well
LARGEST = 400_000  # bytes of a notebook
NO_PICTURES = ("03_from_synthetic_to_real",)  # they are about photographs of people
# What is not the same for everybody.
_PERSONAL = re.compile(r"(?<![\w.:/])/(?:root|home|tmp|Users|usr|work|opt|var|mnt|private)/")
_TIME = re.compile(r"\b20\d\d-\d\d-\d\d|\b\d\d:\d\d:\d\d\b")


def stage(folder: Path) -> Path:
  """Makes a folder look like a checkout to the notebooks; returns the place for them in it."""
  (folder / "configs").symlink_to(ROOT / "configs")
  (folder / "notebooks").mkdir()
  return folder / "notebooks"


def execute(path: Path, folder: Path) -> Any:
  """Runs a notebook in a folder of `stage`; returns it as it is to be kept.

  Raises:
    CellExecutionError: a cell raised.
  """
  notebook = nbformat.read(path, as_version=4)
  resources = {"metadata": {"path": str(folder)}}
  NotebookClient(
    notebook, timeout=CELL, kernel_name="python3", resources=resources, coalesce_streams=True
  ).execute()
  for cell in notebook.cells:
    cell.metadata = {}
    if cell.cell_type == "code":
      cell.outputs = list(_kept(cell.outputs))
  notebook.metadata = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
  }
  return notebook


def _kept(outputs: Sequence[Any]) -> Iterator[Any]:
  """Outputs without what goes to stderr, and without what says nothing beside a picture."""
  for output in outputs:
    if output.get("name") == "stderr":
      continue
    data = output.get("data", {})
    if "image/png" in data:
      data.pop("text/plain", None)
    output.pop("metadata", None)
    yield (
      output if output.output_type == "stream" else nbformat.from_dict({**output, "metadata": {}})
    )


def texts(notebook: Any) -> Iterator[str]:
  """All that a notebook shows in letters."""
  for cell in notebook.cells:
    for output in cell.get("outputs", ()):
      yield output.get("text", "")
      yield from (str(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))


def faults(path: Path) -> list[str]:
  """What of a kept notebook should not be there."""
  notebook = nbformat.read(path, as_version=4)
  found = []
  if path.stat().st_size > LARGEST:
    found.append(f"{path.stat().st_size:,} bytes")
  for text in texts(notebook):
    found += [f"{kind} in {text[:200]!r}" for kind, rule in
              (("a path", _PERSONAL), ("a time", _TIME)) if rule.search(text)]  # fmt: skip
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  if any(output.output_type == "error" for output in outputs):
    found.append("an error")
  shown = [k for output in outputs for k in output.get("data", {}) if k.startswith("image/")]
  if path.stem in NO_PICTURES and (shown or "<img" in "".join(texts(notebook))):
    found.append("a picture")
  counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
  if counts != list(range(1, len(counts) + 1)):
    found.append("cells that were not executed in their order")
  return found


def main() -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default="", help="what the names begin with; default all of them")
  only = parser.parse_args().only
  with tempfile.TemporaryDirectory() as folder:
    place = stage(Path(folder))
    for path in sorted(FOLDER.glob(f"{only}*.ipynb")):
      start = time.perf_counter()
      nbformat.write(execute(path, place), path)
      print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
      if found := faults(path):
        sys.exit(f"error: {path.name} is not to be kept: {'; '.join(found)}")


if __name__ == "__main__":
  main()
