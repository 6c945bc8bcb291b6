"""How all figures look: colours that colour-blind readers tell apart, type that survives print, files that repeat."""

import io

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe & Ito 2008, Color Universal Design
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

WIDTH = 6.75
"""Inches: the text width of a two-column paper."""

mpl.rcParams.update({
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "figure.constrained_layout.use": True,
    "font.size": 8,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
})  # fmt: skip


def panels(rows: int, cols: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of rows x cols axes, `height` inches a row, without pyplot: there is nothing to close."""
    figure = Figure(figsize=(WIDTH, height * rows))
    return figure, list(figure.subplots(rows, cols, squeeze=False).flat)


def title(axes: list[Axes], *titles: str) -> None:
    """Put (a), (b), ... and a title above each of the axes."""
    for letter, axis, text in zip("abcdefghi", axes, titles, strict=False):
        axis.set_title(f"({letter}) {text}", loc="left")


def rendered(figure: Figure, kind: str, about: str) -> bytes:
    """The bytes of the file, png or pdf, with `about` in its metadata and no date, so that they repeat."""
    buffer = io.BytesIO()
    metadata = {"Description": about} if kind == "png" else {"Subject": about, "CreationDate": None}
    figure.savefig(buffer, format=kind, metadata=metadata)
    figure.set_layout_engine("none")  # it is laid out now, for the next kind, too
    return buffer.getvalue()
