"""Pictures of a run: arrays -> matplotlib's figures, for `affjax.report` and for notebooks.

  figure = figures.confusion(counts, names, "expression")
  figure.savefig("confusion.png", dpi=200)

None has state in pyplot; a notebook shows them after `%matplotlib inline`. They are WIDTH inches
wide, so that they can be read on a telephone. Colours are Okabe and Ito's and cividis, which
colour-blind readers can tell apart, and nothing is told by colour alone. Names may be anybody's:
they are drawn as they are, never taken for formulas.
"""

import functools
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dv*"
WIDTH = 4.2  # inches
# Logarithmic from this ratio of the largest to the smallest value on.
LOG_RATIO = 8.0
BINS = 10  # of probabilities
CELLS = 24  # of valence, and of arousal
_NAME = 18  # characters of a name that are shown
_STYLE = {
  "font.size": 9.0,
  "axes.titlesize": 9.0,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": False,
  "figure.constrained_layout.use": True,
  "image.cmap": "cividis",
  "text.parse_math": False,
  "svg.fonttype": "none",  # text, that scales and can be searched
  "svg.hashsalt": "affjax",  # the same picture is the same file
}
# What a score is read by -> marker, colour.
_YARDSTICKS = {
  "floor": ("|", "black"),
  "probe": ("D", COLOURS[4]),
  "ceiling": (">", COLOURS[2]),
}

Curve = tuple[np.ndarray, np.ndarray]  # [points] steps, [points] values


def _styled(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
  """Draws in the style of this module, whatever the user's own is."""

  @functools.wraps(draw)
  def styled(*args: Any, **kwargs: Any) -> "Figure":
    import matplotlib

    with matplotlib.rc_context():
      matplotlib.rcdefaults()
      matplotlib.rcParams.update(_STYLE)
      return draw(*args, **kwargs)

  return styled


def png(figure: "Figure") -> bytes:
  """A figure as the bytes of a PNG file: smaller than an SVG where it is of pictures."""
  return _file(figure, "png", dpi=150)


def svg(figure: "Figure") -> bytes:
  """A figure as the bytes of an SVG file, the same for the same figure."""
  return _file(figure, "svg", metadata={"Date": None})


def _file(figure: "Figure", kind: str, **options: Any) -> bytes:
  import matplotlib

  written = io.BytesIO()
  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # A browser has letters that matplotlib's own font lacks.
    warnings.filterwarnings("ignore", "Glyph .* missing from font")
    if engine := figure.get_layout_engine():
      # Left to itself, `savefig` draws all twice.
      engine.execute(figure)
      figure.set_layout_engine("none")
    figure.savefig(written, format=kind, **options)
  return written.getvalue()


def _new(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple["Figure", Any]:
  """A figure of a height in inches, and its axes."""
  from matplotlib.figure import Figure

  figure = Figure((WIDTH, height))
  return figure, figure.subplots(rows, columns, **options)


def _short(name: str) -> str:
  return name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."


@_styled
def curves(
  found: Mapping[str, Curve], title: str, x_label: str = "step", log: bool | None = None
) -> "Figure":
  """Curves in one pair of axes, each with its name and last value beside its end.

  Args:
    found: name -> positions and values, at least one of each.
    title: what the values are.
    x_label: what the positions are.
    log: whether the vertical axis is logarithmic; None: where the values ask for it.
  """
  values = np.concatenate([curve[1] for curve in found.values()])
  steps = np.concatenate([curve[0] for curve in found.values()])
  if log is None:
    log = values.min() > 0 and values.max() / values.min() >= LOG_RATIO
  figure, axes = _new(max(2.6, 0.7 + 0.19 * len(found)))
  for number, (name, (x, y)) in enumerate(found.items()):
    marked = max(len(x) // 6, 1)
    axes.plot(
      x, y, color=COLOURS[number % len(COLOURS)], lw=1.3, ms=4, label=name,
      marker=MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
      markevery=(marked * number // len(found), marked), clip_on=False,
    )  # fmt: skip
  axes.set(xlabel=x_label, yscale="log" if log else "linear")
  axes.set_title(title + (", logarithmic" if log else ""))
  alone = steps.max() == steps.min()
  axes.set_xlim(steps.min() - alone, steps.max() + alone)
  axes.grid(axis="y", color="0.9", lw=0.6)
  axes.locator_params(axis="x", nbins=4, integer=True)
  if log:
    _few_ticks(axes)
  _name_ends(axes, found)
  return figure


def _few_ticks(axes: "Axes") -> None:
  """Plain numbers at a logarithmic axis: 1, 2 and 5, or powers of ten where there are many."""
  from matplotlib import ticker

  low, high = axes.get_ylim()
  few = math.log10(high / low) < 3
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
  axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
  axes.yaxis.set_minor_locator(ticker.NullLocator())


def _name_ends(axes: "Axes", found: Mapping[str, Curve]) -> None:
  """Names and last values to the right, at the height of each end or as near as others let them."""
  to_axes = axes.transData + axes.transAxes.inverted()
  ends = [to_axes.transform((x[-1], y[-1]))[1] for x, y in found.values()]
  order = np.argsort(ends, kind="stable")
  gap = min(0.105, 1 / max(len(ends) - 1, 1))
  places = np.clip(np.array(ends)[order], 0, 1)
  for i in range(1, len(places)):  # each above the one before
    places[i] = max(places[i], places[i - 1] + gap)
  for i in reversed(range(len(places))):  # and none above the axes
    places[i] = min(places[i], 1 - gap * (len(places) - 1 - i))
  for place, number in zip(places, order, strict=True):
    name, (_, y) = list(found.items())[number]
    line = axes.lines[number]
    axes.plot(
      [1.03], [place], transform=axes.transAxes, clip_on=False, marker=line.get_marker(), ms=4,
      color=line.get_color(),
    )  # fmt: skip
    axes.annotate(
      f"{_short(name)} {y[-1]:.3g}", (1.06, place), xycoords="axes fraction", va="center", size=8
    )


@_styled
def bars(columns: Mapping[str, Mapping[str, float]], title: str) -> "Figure":
  """Scores of single labels as bars, with marks at what they are read by.

  Args:
    columns: "score" -> label -> value, and likewise any of "floor", "ceiling" and "probe", each for
      any of the labels. Values are at most 1.
    title: what the values are.
  """
  scores = columns["score"]
  figure, axes = _new(0.9 + 0.24 * len(scores))
  places = np.arange(len(scores))
  axes.barh(places, list(scores.values()), height=0.62, color=COLOURS[5], label="score")
  least = min(0.0, *scores.values())
  for kind, (marker, colour) in _YARDSTICKS.items():
    known = [(columns[kind][n], i) for i, n in enumerate(scores) if n in columns.get(kind, {})]
    if known:
      axes.plot(
        *np.transpose(known), marker, ms=9 if marker == "|" else 5, mew=1.6, color=colour,
        mfc=colour, mec=colour, ls="", label=kind, clip_on=False,
      )  # fmt: skip
  for place, value in zip(places, scores.values(), strict=True):
    axes.text(1.05, place, f"{value:.2f}", va="center", size=8)
  axes.set_yticks(places, map(_short, scores))
  axes.invert_yaxis()
  axes.set_xlim(least, 1)
  axes.grid(axis="x", color="0.9", lw=0.6)
  axes.set_axisbelow(True)
  figure.suptitle(title, x=0.01, ha="left", size=9)
  handles, labels = axes.get_legend_handles_labels()
  order = [labels.index(kind) for kind in ("score", *_YARDSTICKS) if kind in labels]
  if len(order) == 1:
    return figure
  figure.legend(
    [handles[i] for i in order], [labels[i] for i in order], loc="outside lower left", ncols=4,
    frameon=False, fontsize=8, handletextpad=0.3, columnspacing=1.0, borderpad=0,
  )  # fmt: skip
  return figure


@_styled
def confusion(counts: np.ndarray, names: Sequence[str], title: str) -> "Figure":
  """How often each class was taken for each.

  Args:
    counts: [target class, predicted class].
    names: of the classes.
    title: of what.
  """
  support = counts.sum(1, keepdims=True)
  share = counts / np.maximum(support, 1)
  figure, axes = _new(WIDTH * 0.97)
  axes.imshow(share, vmin=0, vmax=1, cmap="cividis", aspect="auto")
  small = 8 if len(names) <= 8 else max(3.5, 64 / len(names))
  for row in range(len(names)):
    for column in range(len(names)):
      if counts[row, column]:
        axes.text(
          column, row, f"{100 * share[row, column]:.0f}%\n{counts[row, column]:,.0f}",
          ha="center", va="center", size=small * 0.85, linespacing=1.1,
          color="black" if share[row, column] > 0.5 else "white",
        )  # fmt: skip
  shown = [_short(name) for name in names]
  axes.set_xticks(range(len(names)), shown, rotation=45, ha="right", rotation_mode="anchor")
  axes.set_yticks(range(len(names)), shown)
  axes.tick_params(length=0, labelsize=small)
  axes.set(xlabel="predicted", ylabel="annotated")
  axes.spines[:].set_visible(False)
  axes.set_title(f"{title}: share of each row, and count")
  return figure


def density(va: np.ndarray) -> np.ndarray:
  """[CELLS, CELLS] counts of valence (columns) and arousal (rows, upwards) over [-1, 1].

  Args:
    va: [rows, 2] valence and arousal; what is beyond the range counts at its edge.
  """
  edges = np.linspace(-1, 1, CELLS + 1)
  valence, arousal = np.clip(va, -1, 1).T
  return np.histogram2d(arousal, valence, (edges, edges))[0]


@_styled
def densities(truth: np.ndarray, prediction: np.ndarray, ccc: Sequence[float]) -> "Figure":
  """Where the labels are in the plane of valence and arousal, and where the predictions are.

  Args:
    truth: [rows, 2] valence and arousal in [-1, 1].
    prediction: likewise, of the same rows.
    ccc: of valence and of arousal, for the title.
  """
  from matplotlib.colors import LogNorm

  counts = [density(truth), density(prediction)]
  figure, axes = _new(2.75, 1, 2, sharey=True)
  norm = LogNorm(1, max(max(c.max() for c in counts), 2))
  for axis, count, name in zip(axes, counts, ("annotated", "predicted"), strict=True):
    shown = np.ma.masked_equal(count, 0)
    drawn = axis.imshow(
      shown, origin="lower", extent=(-1, 1, -1, 1), norm=norm, interpolation="nearest"
    )
    axis.axhline(0, color="0.6", lw=0.6)
    axis.axvline(0, color="0.6", lw=0.6)
    axis.set(xlabel="valence", xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axis.set_title(name)
    axis.spines[:].set_visible(True)
  axes[0].set_ylabel("arousal")
  bar = figure.colorbar(drawn, ax=axes, location="bottom", aspect=40, pad=0.02, fraction=0.06)
  bar.set_label(f"images in a cell (of {len(truth):,})", size=8)
  bar.ax.xaxis.set_major_formatter("{x:g}")
  bar.ax.xaxis.set_minor_formatter("")
  bar.ax.tick_params(labelsize=8)
  figure.suptitle(f"CCC valence {ccc[0]:.3f}, arousal {ccc[1]:.3f}", x=0.01, ha="left", size=9)
  return figure


def calibration(
  probability: np.ndarray, outcome: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """What probabilities are worth, in BINS bins of equal width.

  Args:
    probability: [events] in [0, 1] that it happens.
    outcome: [events] whether it did.

  Returns:
    [bins] counts; [bins] mean probability and [bins] frequency, NaN in empty bins; and the expected
    calibration error, the mean over the events of the distance of the two in their bin (Guo et al.,
    2017, arXiv:1706.04599).
  """
  of = np.minimum((probability * BINS).astype(int), BINS - 1)
  counts = np.bincount(of, minlength=BINS)
  of_bin = lambda x: np.bincount(of, x, BINS) / np.where(counts, counts, np.nan)
  mean, frequency = of_bin(probability), of_bin(outcome)
  error = np.nansum(counts * np.abs(mean - frequency)) / max(len(of), 1)
  return counts, mean, frequency, float(error)


@_styled
def reliability(probability: np.ndarray, outcome: np.ndarray, title: str, what: str) -> "Figure":
  """How often what was predicted with a probability came true, and how often it was predicted.

  Args:
    probability: see `calibration`.
    outcome: likewise.
    title: of what.
    what: the probability is of, such as "the expression that was chosen".
  """
  counts, mean, frequency, error = calibration(probability, outcome)
  figure, (above, below) = _new(3.4, 2, 1, sharex=True, height_ratios=(3, 1))
  above.plot([0, 1], [0, 1], color="0.4", lw=1, ls="--", label="where it should be")
  there = counts > 0
  above.plot(
    mean[there], frequency[there], marker="o", color=COLOURS[0], lw=1.3, ms=5, clip_on=False,
    label="found",
  )  # fmt: skip
  above.legend(loc="upper left", frameon=False, fontsize=8)
  above.set(ylabel="came true", ylim=(0, 1), xlim=(0, 1))
  above.set_title(f"{title}: ECE {error:.3f}")
  above.grid(color="0.9", lw=0.6)
  edges = (np.arange(BINS) + 0.5) / BINS
  below.bar(edges, counts, 0.85 / BINS, color=COLOURS[5])
  for x, count in zip(edges, counts, strict=True):
    if count:
      shown = f"{count:,}" if count < 10_000 else f"{count / 1000:.0f}k"
      below.annotate(shown, (x, count), ha="center", va="bottom", size=6.5)
  below.set(xlabel=f"probability of {what}", ylabel="count", yticks=())
  below.margins(y=0.3)
  below.spines["left"].set_visible(False)
  return figure


@_styled
def groups(
  found: Mapping[str, Mapping[str, tuple[float, int]]], overall: float, title: str
) -> "Figure":
  """Scores of groups of rows as dots, beside the score of all.

  Args:
    found: what is grouped by -> group -> its score and its rows.
    overall: the score of all rows.
    title: what the score is.
  """
  lines = [(by, group, *of) for by, its in found.items() for group, of in its.items()]
  starts = np.cumsum([0, *map(len, found.values())])[:-1]
  # A line is left free above each heading.
  places = np.array([i + sum(start <= i for start in starts) for i in range(len(lines))])
  scores = np.array([score for _, _, score, _ in lines])
  figure, axes = _new(0.9 + 0.2 * (places[-1] + 1))
  axes.axvline(overall, color="0.4", lw=1, ls="--", zorder=0)
  axes.hlines(places, overall, scores, color="0.75", lw=1.5, zorder=1)
  axes.plot(scores, places, "o", color=COLOURS[0], ms=5)
  axes.set_yticks(places, [f"{_short(group)} ({rows:,})" for _, group, _, rows in lines], size=8)
  axes.set_ylim(places[-1] + 0.7, -0.7)
  low, high = min(*scores, overall), max(*scores, overall)
  room = max(0.12 * (high - low), 0.02)
  axes.set_xlim(low - room, high + room)
  for start, by in zip(starts, found, strict=True):
    axes.text(
      0, places[start] - 1, by, transform=axes.get_yaxis_transform(), va="center", size=8,
      weight="bold", ha="left", bbox=dict(color="white", pad=0.5),
    )  # fmt: skip
  for place, score in zip(places, scores, strict=True):
    axes.annotate(
      f"{score:.2f}", (1.02, place), xycoords=("axes fraction", "data"), va="center", size=8
    )
  figure.suptitle(f"{title}; dashed: all, {overall:.2f}", x=0.01, ha="left", size=9)
  axes.spines["left"].set_visible(False)
  axes.tick_params(axis="y", length=0)
  axes.grid(axis="x", color="0.92", lw=0.6)
  axes.locator_params(axis="x", nbins=5)
  return figure


@_styled
def spread(values: np.ndarray, title: str, what: str) -> "Figure":
  """How a score is spread over people or videos: a histogram with its quartiles.

  Args:
    values: [people] a number of each.
    title: what of whom.
    what: the number is.
  """
  figure, axes = _new(2.2)
  axes.hist(values, min(20, max(5, len(values) // 4)), color=COLOURS[5], edgecolor="white")
  for quartile, style in zip((0.25, 0.5, 0.75), (":", "-", ":"), strict=True):
    axes.axvline(np.quantile(values, quartile), color="black", lw=1.2, ls=style)
  low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
  axes.set_title(
    f"{title}\nmedian {middle:.2f} (line), quartiles {low:.2f} and {high:.2f} (dotted)"
  )
  axes.set(xlabel=what, ylabel="count")
  axes.locator_params(axis="y", integer=True, nbins=4)
  return figure


@_styled
def attention(face: np.ndarray, maps: Mapping[str, np.ndarray], title: str) -> "Figure":
  """Where tokens look, over a face; yellow, within contours, is where most.

  Contours are drawn where attention is twice and four times that of one that is spread evenly.

  Args:
    face: [height, width] grey, such as the mean of faces; its range is stretched.
    maps: token -> [rows, columns] share of its attention on each patch.
    title: of what.
  """
  import cv2

  across = 3 if len(maps) <= 12 else 4
  down = -(-len(maps) // across)
  figure, axes = _new(0.85 + down * (WIDTH / across + 0.12), down, across, squeeze=False)
  size = face.shape[::-1]
  for axis in axes.flat:
    axis.axis("off")
  for axis, (name, looks) in zip(axes.flat, maps.items(), strict=False):
    ratio = looks * looks.size / max(looks.sum(), 1e-12)
    smooth = cv2.resize(ratio.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    axis.imshow(face, cmap="gray")
    drawn = axis.imshow(smooth, vmin=0, vmax=4, alpha=0.5)
    for level, width in ((2, 0.8), (4, 1.6)):
      if smooth.min() < level < smooth.max():
        axis.contour(smooth, [level], colors="white", linewidths=width)
    axis.set_title(f"{_short(name)}, to {ratio.max():.1f}x", size=8, loc="center")
  bar = figure.colorbar(drawn, ax=axes, location="bottom", aspect=40, pad=0.02, fraction=0.06)
  bar.set_label("attention, times that of one spread evenly", size=8)
  figure.suptitle(title, x=0.01, ha="left", size=9)
  return figure


@_styled
def over_time(
  time: np.ndarray,
  va: Mapping[str, np.ndarray],
  expression: Mapping[str, np.ndarray],
  truth: Mapping[str, np.ndarray] | None = None,
  x_label: str = "frame",
) -> "Figure":
  """Predictions along a video: valence and arousal as lines, expressions as strips.

  Args:
    time: [frames] where each is.
    va: "valence" and "arousal" -> [frames], NaN where there is no face; {}: none.
    expression: expression -> [frames] probability, likewise; {}: none.
    truth: of `va`, where it is known: drawn dotted.
    x_label: what `time` is.
  """
  heights = [1.5] * bool(va) + [max(0.17 * len(expression), 0.5)] * bool(expression)
  figure, axes = _new(0.7 + sum(heights), len(heights), 1, squeeze=False, sharex=True,
                      height_ratios=heights)  # fmt: skip
  axes = list(axes[:, 0])
  axes[-1].set_xlabel(x_label)
  if va:
    axis = axes.pop(0)
    for number, (name, values) in enumerate(va.items()):
      mark = dict(marker=MARKERS[number], markevery=max(len(time) // 8, 1), ms=4)
      axis.plot(time, values, color=COLOURS[number], lw=1.3, label=name, **mark)
      if truth and name in truth:
        label = f"{name}, annotated"
        axis.plot(time, truth[name], color=COLOURS[number], lw=1.2, ls=":", label=label)
    axis.set_ylim(-1, 1)
    axis.axhline(0, color="0.8", lw=0.6, zorder=0)
    axis.legend(
      loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8, borderpad=0
    )
  if expression:
    (axis,) = axes
    half = (time[-1] - time[0]) / max(len(time) - 1, 1) / 2 or 0.5
    extent = (time[0] - half, time[-1] + half, len(expression) - 0.5, -0.5)
    drawn = axis.imshow(
      np.stack(list(expression.values())), vmin=0, vmax=1, aspect="auto", extent=extent,
      interpolation="nearest",
    )  # fmt: skip
    axis.set_yticks(range(len(expression)), map(_short, expression), size=8)
    bar = figure.colorbar(drawn, ax=axis, location="right", pad=0.02, aspect=12)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("probability", size=8)
  return figure
