"""One HTML page that needs nothing else: no network, no script, pictures inside it.

All text that is given is escaped, and the page itself forbids scripts and whatever is elsewhere:
names may be anybody's.
"""

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax.data import records

# Nothing is loaded and nothing runs, whatever a page holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --dim: #595959; --page: #fff; --line: #d4d4d4;
  --card: #fff; --bar: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --dim: #a8a8a8; --page: #16181b;
  --line: #3c4046; --bar: #2f7fb0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 84rem; color: var(--text);
  background: var(--page); font: 1rem/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.5rem; font-size: 1.3rem; }
h3 { margin: 1.5rem 0 .4rem; font-size: 1.05rem; } p { margin: .4rem 0; max-width: 50rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; }
a { color: inherit; } h2 a, h3 a { text-decoration: none; }
nav a { margin-right: .9rem; white-space: nowrap; } .dim { color: var(--dim); }
.wide { overflow-x: auto; margin: .5rem 0; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .15rem .6rem .15rem 0; text-align: left; vertical-align: top; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); } th { font-weight: 600; overflow-wrap: normal; }
tbody th { font-weight: normal; }
.grid { display: grid; gap: 1rem; align-items: start; margin: .8rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--cell)), 1fr)); }
figure { margin: 0; } figcaption { font-size: .8rem; line-height: 1.3; margin-top: .2rem; }
.chart { background: #fff; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; }
.chart img { display: block; width: 100%; max-width: 30rem; height: auto; margin: 0 auto; }
.chart figcaption { color: #595959; }
.face img { display: block; width: 100%; max-width: 12rem; height: auto; border-radius: .2rem; }
summary { cursor: pointer; margin: .5rem 0; } pre { overflow-x: auto; font-size: .8rem; }
.bar { display: block; height: .9rem; min-width: 1px; background: var(--bar); }
td.bars { min-width: 6rem; width: 100%; vertical-align: middle; }
"""
_KINDS = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"<?xml": "svg+xml"}


def text(value: Any) -> str:
  """A value as text of HTML, of an attribute too."""
  return html.escape(str(value))


def number(value: Any) -> str:
  """A number as text: whole ones with commas, others with three digits, "-" for None."""
  if value is None:
    return "-"
  return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def anchor(title: str) -> str:
  """A title as the name of a place in the page."""
  return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"


def caption(
  labels: Mapping[str, Any], mask: Mapping[str, Any], names: Mapping[str, Sequence[str]]
) -> list[str]:
  """The labels of one image in words, a line a task; "-" where a task is not annotated.

  Args:
    labels: task -> label of the image.
    mask: task -> its mask.
    names: task -> names of its labels.
  """
  lines = []
  for task, known in names.items():
    label, given = np.asarray(labels[task]), np.asarray(mask[task])
    if not given.any():
      lines.append(f"{task} -")
    elif task == "va":
      shown = [f"{v:+.2f}" if m else "-" for v, m in zip(label, given, strict=True)]
      lines.append("V {} A {}".format(*shown))
    elif task == "expression":
      top = np.argsort(-label, kind="stable")[:2]
      lines.append(" ".join(f"{known[i]} {label[i]:.1f}" for i in top if label[i] > 0.05))
    else:
      on = [
        n.removeprefix("AU") for n, v, m in zip(known, label, given, strict=True) if m and v >= 0.5
      ]
      lines.append("AU " + (" ".join(on) or "none"))
  return lines


def picture(content: bytes, alt: str, caption: str = "", kind: str = "chart") -> str:
  """A JPEG, PNG or SVG.

  Args:
    content: of its file.
    alt: what it shows, in words.
    caption: text below it, one line or several.
    kind: "chart", or "face", which is smaller.

  Raises:
    ValueError: another kind of file.
  """
  found = next((of for start, of in _KINDS.items() if content.startswith(start)), None)
  if found is None:
    raise ValueError(f"a picture begins with {content[:4]!r}: use JPEG, PNG or SVG")
  data = f"data:image/{found};base64,{base64.b64encode(content).decode()}"
  below = "<br>".join(text(line) for line in caption.splitlines())
  below = f"<figcaption>{below}</figcaption>" if below else ""
  return (
    f'<figure class="{kind}"><img src="{data}" alt="{text(alt)}" loading="lazy">{below}</figure>'
  )


def grid(parts: Iterable[str], cell: str = "21rem") -> str:
  """Parts side by side, as many as the window has room for, each at least `cell` wide."""
  return f'<div class="grid" style="--cell: {cell}">{"".join(parts)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """A table; all but the first column are numbers where they are numbers or None."""
  is_number = lambda value: value is None or isinstance(value, int | float)
  rows = [list(row) for row in rows]
  right = [all(is_number(row[i]) for row in rows) and bool(i) for i in range(len(head))]
  mark = lambda i: ' class="number"' if right[i] else ""
  cell = lambda i, value: number(value) if right[i] else text(value)
  top = "".join(f'<th scope="col"{mark(i)}>{text(name)}</th>' for i, name in enumerate(head))
  lines = [
    f'<tr><th scope="row">{text(row[0])}</th>'
    + "".join(f"<td{mark(i)}>{cell(i, row[i])}</td>" for i in range(1, len(row)))
    + "</tr>"
    for row in rows
  ]
  top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
  return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def bars(counts: Mapping[str, int], notes: Mapping[str, str] | None = None) -> str:
  """Counts as bars, each with its number.

  Args:
    counts: name -> number.
    notes: name -> what is to be said beside its number.
  """
  most, notes = max([*counts.values(), 1]), notes or {}
  lines = [
    f'<tr><th scope="row">{text(name)}</th><td class="number">{number(count)}</td>'
    f'<td class="number">{text(notes.get(name, ""))}</td>'
    f'<td class="bars"><span class="bar" style="width: {100 * count / most:.1f}%"></span></td></tr>'
    for name, count in counts.items()
  ]
  return f'<div class="wide"><table><tbody>{"".join(lines)}</tbody></table></div>'


def details(summary: str, *parts: str) -> str:
  """Parts that are shown once their summary is clicked."""
  return f"<details><summary>{text(summary)}</summary>{''.join(parts)}</details>"


def paragraph(words: str, dim: bool = False) -> str:
  """Text, perhaps paler."""
  return f"<p{' class=dim' * dim}>{text(words)}</p>"


def heading(title: str, place: str, level: int = 3) -> str:
  """A heading that can be linked to as `#place`."""
  return f'<h{level} id="{text(place)}"><a href="#{text(place)}">{text(title)}</a></h{level}>'


def document(title: str, lead: str, sections: Mapping[str, str]) -> str:
  """The whole page.

  Args:
    title: of the page.
    lead: HTML that stands before the sections.
    sections: title -> HTML.
  """
  links = "".join(f'<a href="#{anchor(name)}">{text(name)}</a> ' for name in sections)
  body = "".join(
    f"<section>{heading(name, anchor(name), 2)}{content}</section>"
    for name, content in sections.items()
  )
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{text(title)}</title><style>{_STYLE}</style></head><body>"
    f"<main><h1>{text(title)}</h1><nav>{links}</nav>{lead}{body}</main></body></html>\n"
  )


def write(path: Path, content: str) -> None:
  """Writes a page whole or not at all; ValueError where that cannot be."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Names may hold what is no text, such as half of a surrogate pair.
    records.store(path, content.encode("utf-8", "replace"))
  except OSError as e:
    raise ValueError(f"{path} cannot be written: {e.strerror}") from e
