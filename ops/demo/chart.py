"""The loss curves as inline SVG; colours come from the page's style."""

import math
from html import escape

import numpy as np

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 36, 128, 12, 34
SMOOTHING = 0.85  # of the exponential mean that the line shows; the dots are the steps themselves
LABEL_HEIGHT = 17


def curves(series: dict[str, list[tuple[int, float]]]) -> str:
    """Lines of (step, value) pairs with their names at the right end."""
    last = max(step for points in series.values() for step, _ in points)
    top = math.ceil(max(value for points in series.values() for _, value in points))
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * step / last  # noqa: E731
    y = lambda value: HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top  # noqa: E731
    parts, ends = [_grid(top, last, x, y)], {}
    for number, (name, points) in enumerate(series.items()):
        smooth = _smooth([value for _, value in points])
        dots = "".join(f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="1.3"/>' for step, value in points)
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for (step, _), value in zip(points, smooth, strict=True))
        parts.append(f'<g class="s{number}"><g class="dots">{dots}</g><polyline points="{line}"/></g>')
        ends[name] = y(smooth[-1])
    parts += [
        f'<text class="name s{number}" x="{WIDTH - RIGHT + 8}" y="{place + 4:.1f}">{escape(name)}</text>'
        for number, (name, place) in enumerate(zip(ends, _apart(list(ends.values())), strict=True))
    ]
    label = "Training loss by step: " + ", ".join(series)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _grid(top: int, last: int, x, y) -> str:
    lines = [
        f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text class="tick" x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>'
        for v in range(top + 1)
    ]
    ticks = [
        f'<text class="tick" x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:.0f}</text>'
        for step in np.linspace(0, last, 6)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "".join(lines + ticks) + f'<text class="tick" x="{middle}" y="{HEIGHT - 2}" text-anchor="middle">step</text>'


def _smooth(values: list[float]) -> list[float]:
    """Exponential mean without the pull of its start (Adam's correction)."""
    mean, smooth = 0.0, []
    for count, value in enumerate(values, start=1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        smooth.append(mean / (1 - SMOOTHING**count))
    return smooth


def _apart(places: list[float]) -> list[float]:
    """The same heights, moved down where labels would touch."""
    moved, lowest = dict(), -math.inf
    for index in np.argsort(places, kind="stable").tolist():
        lowest = moved[index] = max(places[index], lowest + LABEL_HEIGHT)
    return [moved[index] for index in range(len(places))]
