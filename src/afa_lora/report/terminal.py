"""Lines drawn with braille characters: 2 × 4 dots in each place of the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
BRAILLE = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bit of the dot at [row][column] of a character
MARGIN = 5  # columns for the numbers at the left


def draw_lines(
    lines: Mapping[str, Sequence[float]], *, width: int, x_label: str, y_label: str, height: int = 12
) -> Text:
    """Draw lines with values in [0, 1], each stretched over the whole width.

    Args:
        lines: name and values of each line; where lines cross, the later one's colour wins.
        width: columns of the drawing, at least 20.
        x_label: below the drawing.
        y_label: above the drawing.
        height: rows of the drawing.
    """
    columns = max(width, 20) - MARGIN
    dots = [[0] * columns for _ in range(height)]
    colours = [["default"] * columns for _ in range(height)]
    for (_, values), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        for x, y in _points(values, 2 * columns, 4 * height):
            dots[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            colours[y // 4][x // 2] = colour
    drawing = Text(f"{y_label:>{MARGIN - 2}}\n")
    for row in range(height):
        drawing.append({0: "1 ┤", height - 1: "0 ┤"}.get(row, "│").rjust(MARGIN))
        for bits, colour in zip(dots[row], colours[row], strict=True):
            drawing.append(chr(BRAILLE + bits) if bits else " ", style=colour)
        drawing.append("\n")
    drawing.append(" " * (MARGIN - 1) + "└" + "─" * columns + "\n" + " " * MARGIN + x_label + "\n" + " " * MARGIN)
    for name, colour in zip(lines, _cycle(len(lines)), strict=True):
        drawing.append(f"── {name}   ", style=colour)
    return drawing


def _points(values: Sequence[float], width: int, height: int) -> list[tuple[int, int]]:
    """The dots of one line, x to the right and y downwards; steep parts are filled so that the line has no gap."""
    ys = [round((1.0 - values[round(x * (len(values) - 1) / (width - 1))]) * (height - 1)) for x in range(width)]
    points = [(0, ys[0])]
    for x in range(1, width):
        low, high = sorted((ys[x - 1], ys[x]))
        points += [(x, y) for y in range(low, high + 1)]
    return points


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
