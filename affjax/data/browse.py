"""A page of samples of a data set with their labels, and of how many there are of each.

  python -m affjax.data.browse synthetic_faces
  python -m affjax.data.browse synthetic_faces --filter expression=anger au=AU4 --sort=-arousal
  python -m affjax.data.browse image_folder/my_set --split=validation --filter unlabelled=va

The page is one file that needs neither a network nor scripts. It holds the images as they are in
the records: of a licensed data set it is under that licence, too. What --filter takes, all of which
must hold:

  expression=NAME   the one with the largest share
  au=NAME           a unit that is on
  labelled=TASK     va, expression or au: any label of it; unlabelled=TASK: none
  person=NAME, video=NAME, key=TEXT   whose name is that; whose key holds that

--sort takes the name of a label of valence and arousal, or of a unit, and `key`; with a `-` before
it the largest come first. Without it the samples are drawn at random, by --seed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from affjax.data import page, prepare, records
from affjax.labels import TASKS
from tfds_builders import images as image_files

COUNT = 64  # samples
CELLS = 20  # of valence, and of arousal
_TASKS = {"va": "valence and arousal", "expression": "expressions", "au": "action units"}
# From few to many: one hue that gets darker.
_FEW, _MANY = np.array([222, 235, 247]), np.array([8, 48, 107])

Table = Mapping[str, np.ndarray]


def browse(
  build: Any,
  output: Path,
  *,
  split: str = "train",
  count: int = COUNT,
  seed: int = 0,
  terms: Sequence[str] = (),
  sort: str = "",
) -> Path:
  """Writes the page.

  Args:
    build: of a prepared data set.
    output: file that is written.
    split: from which samples are shown.
    count: of samples, at most.
    seed: of the draw.
    terms: what samples must fit, such as "expression=anger".
    sort: by what they are sorted; empty: drawn at random.

  Raises:
    ValueError: no such split or label, nothing fits, or a record cannot be read.
  """
  found, table = records.shards(build, split), records.label_table(build, split)
  has = records.metadata(build)["labels"]
  fits = matching(table, has, terms)
  if not len(fits):
    raise ValueError(f"--filter: no image of {split} fits {' and '.join(terms)}")
  if sort:
    rows = _sorted(table, has, fits, sort)[:count]
  else:
    rows = np.sort(np.random.default_rng(seed).permutation(fits)[:count])
  how = f"{len(rows):,} of {len(fits):,} images of {split}"
  how += f" that fit {' and '.join(terms)}" if terms else ""
  how += f", by {sort}" if sort else f", drawn with seed {seed}"
  config = f"/{build.builder_config.name}" if build.builder_config else ""
  lead = page.paragraph(f"Version {build.version}, in {build.data_dir}", dim=True)
  tables = {name: records.label_table(build, name) for name in build.info.splits}
  sections = {
    "Splits": _splits(tables, has) + _sizes(build, found),
    **{f"Labels of {name}": _labels(of, has) for name, of in tables.items()},
    "Samples": page.paragraph(f"{how}.") + _samples(found, table, has, rows),
  }
  page.write(output, page.document(f"{build.name}{config}", lead, sections))
  return output


def _known(table: Table, task: str) -> np.ndarray:
  """[rows, size] bool: which labels of a task there are; of a set without them none."""
  if f"mask/{task}" not in table:
    return np.zeros((len(table["key"]), 1), bool)
  return table[f"mask/{task}"].reshape(len(table["key"]), -1) > 0


def matching(table: Table, has: Mapping[str, Sequence[str]], terms: Sequence[str]) -> np.ndarray:
  """Numbers of the rows that fit all terms.

  Args:
    table: see `records.label_table`.
    has: task -> names of its labels.
    terms: see the module.

  Raises:
    ValueError: a term is of none of the kinds, or of a name that there is not.
  """
  fits = np.ones(len(table["key"]), bool)
  for term in terms:
    kind, _, name = term.partition("=")
    if kind in ("labelled", "unlabelled"):
      fits &= _known(table, _one_of(term, name, TASKS)).any(1) == (kind == "labelled")
    elif kind == "expression":
      number = list(has.get(kind, ())).index(_one_of(term, name, has.get(kind, ())))
      fits &= _known(table, kind)[:, 0]
      fits &= table["labels/expression"].argmax(1) == number
    elif kind == "au":
      number = list(has.get(kind, ())).index(_one_of(term, name, has.get(kind, ())))
      fits &= _known(table, kind)[:, number] & (table["labels/au"][:, number] >= 0.5)
    elif kind == "key":
      fits &= np.strings.find(table["key"], name.encode()) >= 0
    elif kind in ("person", "video") and kind in table:
      fits &= table[kind] == _one_of(term, name, _texts(np.unique(table[kind]))).encode()
    else:
      kinds = ["expression", "au", "labelled", "unlabelled", "key"]
      kinds += [kind for kind in ("person", "video") if kind in table]
      raise ValueError(f"--filter {term!r}: use one of {', '.join(f'{k}=...' for k in kinds)}")
  return np.flatnonzero(fits)


def _texts(names: np.ndarray) -> list[str]:
  return [name.decode("utf-8", "replace") for name in names.tolist()]


def _one_of(term: str, name: str, allowed: Sequence[str]) -> str:
  if name not in allowed:
    shown = ", ".join(list(allowed)[:20]) or "none, for this data set has no such labels"
    more = f", ... ({len(allowed)} in all)" if len(allowed) > 20 else ""
    raise ValueError(f"--filter {term!r}: use one of {shown}{more}")
  return name


def _sorted(
  table: Table, has: Mapping[str, Sequence[str]], rows: np.ndarray, by: str
) -> np.ndarray:
  """Rows in the order of a label or of their keys; those without the label are left out."""
  name, down = by.removeprefix("-"), by.startswith("-")
  if name == "key":
    order = np.argsort(table["key"][rows], kind="stable")
    return rows[order[::-1] if down else order]
  for task in ("va", "au"):
    if name in has.get(task, ()):
      column = list(has[task]).index(name)
      rows = rows[_known(table, task)[rows, column]]
      values = table[f"labels/{task}"][rows, column]
      return rows[np.argsort(-values if down else values, kind="stable")]
  allowed = ["key", *has.get("va", ()), *has.get("au", ())]
  raise ValueError(f"--sort={by}: use one of {', '.join(allowed)}, or one with - before it")


# The parts of the page.


def _splits(tables: Mapping[str, Table], has: Mapping[str, Sequence[str]]) -> str:
  """A table: images, people, videos and images without labels of each split."""
  tasks = [task for task in TASKS if task in has]
  places = {"person": "people", "video": "videos"}
  places = {c: name for c, name in places.items() if any(c in t for t in tables.values())}
  head = ["split", "images", *places.values(), *(f"without {_TASKS[task]}" for task in tasks)]
  distinct = lambda column: len(np.unique(column[column != b""]))
  lines = [
    [split, len(table["key"])]
    + [distinct(table[c]) for c in places]
    + [int((~_known(table, task).any(1)).sum()) for task in tasks]
    for split, table in tables.items()
  ]
  return page.table(head, lines)


def _sizes(build: Any, found: records.Shards) -> str:
  """The images' sizes: of all, where they have one, else of some."""
  if size := records.image_size(build):
    return page.paragraph(f"All images have {size[1]} x {size[0]} pixels.")
  rows = np.unique(np.linspace(0, len(found) - 1, min(image_files.SAMPLE, len(found))).astype(int))
  sizes = [image_files.measure(records.image_of(found.record(row))) for row in rows.tolist()]
  low, middle, high = np.quantile(sizes, (0, 0.5, 1), axis=0).astype(int)
  return page.paragraph(
    f"Images have sizes of their own. Of {len(rows):,} of them: width {low[1]} to {high[1]} pixels,"
    f" median {middle[1]}; height {low[0]} to {high[0]}, median {middle[0]}."
  )


def _labels(table: Table, has: Mapping[str, Sequence[str]]) -> str:
  """How often each label is there in a split."""
  parts = []
  for task in (task for task in TASKS if task in has):
    known = _known(table, task)
    title = f"<h3>{page.text(_TASKS[task])}</h3>"
    if not known.any():
      parts.append(f"<div>{title}{page.paragraph('Nothing is labelled.')}</div>")
      continue
    shown = {"va": _va, "expression": _expressions, "au": _units}[task]
    parts.append(f"<div>{title}{shown(table, known, has[task])}</div>")
  return page.grid(parts)


def _expressions(table: Table, known: np.ndarray, names: Sequence[str]) -> str:
  labels = table["labels/expression"][known[:, 0]]
  counts = np.bincount(labels.argmax(1), minlength=len(names))
  soft = " by their largest share" if ((labels > 0) & (labels < 1)).any() else ""
  share = {name: f"{n / len(labels):.1%}" for name, n in zip(names, counts, strict=True)}
  return page.paragraph(f"{len(labels):,} images{soft}", dim=True) + page.bars(
    dict(zip(names, counts.tolist(), strict=True)), share
  )


def _units(table: Table, known: np.ndarray, names: Sequence[str]) -> str:
  on = ((table["labels/au"] >= 0.5) & known).sum(0)
  share = {
    name: f"{n / of:.1%} of {of:,}" if of else "not labelled"
    for name, n, of in zip(names, on, known.sum(0), strict=True)
  }
  return page.paragraph("Images in which each is on", dim=True) + page.bars(
    dict(zip(names, on.tolist(), strict=True)), share
  )


def _va(table: Table, known: np.ndarray, names: Sequence[str]) -> str:
  values = table["labels/va"]
  lines = []
  for column, name in enumerate(names):
    of = values[known[:, column], column]
    if len(of):
      lines.append([name, len(of), float(of.mean()), float(of.std())])
  numbers = page.table(["", "labelled", "mean", "deviation"], lines)
  if len(names) != 2:
    return numbers
  both = values[known.all(1)]
  told = f"Density of {names[0]} and {names[1]} of {len(both):,} images"
  return page.picture(plane(both, names), told) + numbers


def plane(va: np.ndarray, names: Sequence[str] = ("valence", "arousal")) -> bytes:
  """An SVG of how many images there are in each cell of two labels, darker where there are more.

  Args:
    va: [rows, 2] in [-1, 1]; what is beyond counts at the edge.
    names: of the labels.
  """
  edges = np.linspace(-1, 1, CELLS + 1)
  counts = np.histogram2d(*np.clip(va, -1, 1).T, (edges, edges))[0].astype(int)
  most, side = max(counts.max(), 1), 12
  cells = []
  for column, row in np.argwhere(counts):
    depth = np.log1p(counts[column, row]) / np.log1p(most)
    colour = "#{:02x}{:02x}{:02x}".format(*np.round(_FEW + (_MANY - _FEW) * depth).astype(int))
    x, y = 40 + side * column, 10 + side * (CELLS - 1 - row)
    cells.append(f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{colour}"/>')
  end, middle = 40 + side * CELLS, 40 + side * CELLS / 2
  write = lambda x, y, words, rest="": (
    f'<text x="{x}" y="{y}" text-anchor="middle" {rest}>{page.text(words)}</text>'
  )
  bottom = 10 + side * CELLS
  return (
    '<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg"'
    f' viewBox="0 0 {end + 14} {bottom + 50}" font-family="sans-serif" font-size="12">'
    + "".join(cells)
    + f'<path d="M40 10V{bottom}H{end}M40 {10 + side * CELLS / 2}H{end}M{middle} 10V{bottom}"'
    ' fill="none" stroke="#999"/>'
    + "".join(write(x, bottom + 15, words) for x, words in ((40, -1), (middle, 0), (end, 1)))
    + "".join(write(28, y, w) for y, w in ((bottom, -1), (14 + side * CELLS / 2, 0), (16, 1)))
    + write(middle, bottom + 30, names[0])
    + write(0, 0, names[1], f'transform="translate(14 {10 + side * CELLS / 2}) rotate(-90)"')
    + write(middle, bottom + 46, f"darkest: {most:,} images")
    + "</svg>"
  ).encode("utf-8", "replace")


def _samples(
  found: records.Shards, table: Table, has: Mapping[str, Sequence[str]], rows: np.ndarray
) -> str:
  """The images of rows, each with its labels, its key and whose it is."""
  columns = lambda kind, row: {t: table[f"{kind}/{t}"][row] for t in has if f"{kind}/{t}" in table}
  cards = []
  for row in rows.tolist():
    labels, mask = columns("labels", row), columns("mask", row)
    lines = page.caption(labels, mask, {task: has[task] for task in labels})
    key, *whose = _texts(
      np.array([table[c][row] for c in ("key", "person", "video") if c in table])
    )
    about = [key, *(name for name in whose if name and name not in key)]
    if "video" in table and table["video"][row]:
      about.append(f"frame {table['frame'][row]}")
    alt = f"{key}: {'; '.join(lines)}"
    try:
      cards.append(
        page.picture(records.image_of(found.record(row)), alt, "\n".join([*lines, *about]), "face")
      )
    except ValueError as e:
      raise ValueError(f"{found.where(row)}: {e}") from e
  return page.grid(cards, "7.5rem")


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.data.browse",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("name", metavar="NAME[/CONFIG]", help=f"a data set: {', '.join(records.names())}")
  add("--split", default="train", help="from which samples are shown; default train")
  add("--count", type=int, default=COUNT, help=f"of samples; default {COUNT}")
  add("--seed", type=int, default=0, help="of the draw; default 0")
  add("--filter", nargs="+", default=[], metavar="WHAT=NAME", help="what samples must fit")
  add("--sort", default="", metavar="LABEL", help="by what they are sorted; default: random")
  add("--output", default="browse.html", metavar="FILE", help="default browse.html")
  add("--data_dir", metavar="FOLDER", help="where prepared data lives")
  options = parser.parse_args(argv)
  logging.set_verbosity(logging.ERROR)  # TFDS warns of configs that users name
  try:
    if options.count < 1 or options.seed < 0:
      raise ValueError(f"--count={options.count} --seed={options.seed}: use at least 1 and 0")
    name, _, config = options.name.partition("/")
    build = records.builder(name, config, options.data_dir)
    prepare.prepare(build)
    output = browse(
      build,
      Path(options.output),
      split=options.split,
      count=options.count,
      seed=options.seed,
      terms=options.filter,
      sort=options.sort,
    )
  except (ValueError, FileNotFoundError) as e:
    sys.exit(f"error: {' '.join(str(e).split())}")
  print(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
  main()
