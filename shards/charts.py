"""Histograms as inline SVG: no script, no external asset, colours from the page's style."""

import math
from html import escape

import numpy as np

WIDTH, HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 34
_GAP = 2


def histogram(values: np.ndarray, unit: str, whole: bool = False) -> str:
    """An SVG histogram of non-negative numbers; `whole` for counts. The top percent is gathered in the last bar."""
    top = max(float(np.quantile(values, 0.99)), 1.0)
    step = _nice_step(top / 16, whole)
    edges = step * np.arange(math.floor(top / step) + 2)
    counts, _ = np.histogram(np.minimum(values, edges[-1] - step / 2), edges)
    highest = counts.max()
    bar = (WIDTH - _LEFT - _RIGHT) / len(counts)
    tail = values.max() >= edges[-1]
    bars = []
    for index, count in enumerate(counts):
        if count:
            height = max(1.5, (HEIGHT - _TOP - _BOTTOM) * count / highest)
            last = tail and index == len(counts) - 1
            span = f"{edges[index]:g} or more" if last else _span(edges[index], step, whole)
            bars.append(
                f'<rect class="bar" x="{_LEFT + index * bar + _GAP / 2:.1f}" y="{HEIGHT - _BOTTOM - height:.1f}" '
                f'width="{max(1.0, bar - _GAP):.1f}" height="{height:.1f}" rx="2">'
                f"<title>{span} {escape(unit)}: {count:,}</title></rect>"
            )
    label = f"Histogram of {unit}, {len(values):,} samples, median {np.median(values):g}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{_y_axis(int(highest))}{''.join(bars)}{_x_axis(edges, unit)}</svg>"
    )


def _y_axis(highest: int) -> str:
    step = _nice_step(highest / 3, whole=True)
    lines = []
    for value in np.arange(0, highest + 1, step):
        y = HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * value / highest
        lines.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:,.0f}</text>')
    return "".join(lines)


def _x_axis(edges: np.ndarray, unit: str) -> str:
    every = math.ceil(len(edges) / 8)
    scale = (WIDTH - _LEFT - _RIGHT) / (edges[-1] - edges[0])
    ticks = [
        f'<text class="tick" x="{_LEFT + edge * scale:.1f}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle">{edge:g}</text>'
        for edge in edges[:-1:every]
    ]
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    return f'{"".join(ticks)}<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(unit)}</text>'


def _span(start: float, step: float, whole: bool) -> str:
    if not whole:
        return f"{start:g} to {start + step:g}"
    return f"{start:g}" if step == 1 else f"{start:g} to {start + step - 1:g}"


def _nice_step(rough: float, whole: bool) -> float:
    """The smallest of 1, 2, 5 x 10^n that is at least `rough`."""
    power = 10.0 ** math.floor(math.log10(max(rough, 1e-9)))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return max(1.0, step) if whole else step
