"""Writing SVG: rectangles, texts and lines at given places, as text that is the same each time."""

from __future__ import annotations

from html import escape

INK, PAPER = "#222222", "#ffffff"


class Drawing:
    """A picture of a width and height in pixels, on white paper."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str = "none", stroke: str = INK
    ) -> None:
        """Draw a rectangle."""
        place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        self.parts.append(f'<rect {place} fill="{fill}" stroke="{stroke}" stroke-width="0.75"/>')

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 11,
        anchor: str = "middle",
        fill: str = INK,
        bold: bool = False,
        code: bool = False,
    ) -> None:
        """Write a line of text whose base line is at y."""
        family = "monospace" if code else "sans-serif"
        style = f'font-family="{family}" font-size="{size:g}" text-anchor="{anchor}" fill="{fill}"'
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" {style}{weight}>{escape(text)}</text>')

    def line(self, *points: tuple[float, float], dashed: bool = False, arrow: bool = False) -> None:
        """Draw a line through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        dashes = ' stroke-dasharray="4 3"' if dashed else ""
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{INK}"{dashes}{end}/>')

    def text(self) -> str:
        """The whole file."""
        size = f'width="{self.width:g}" height="{self.height:g}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {self.width:g} {self.height:g}">'
        arrow = '<path d="M0,0 L7,3 L0,6 z"/>'
        marker = (
            f'<marker id="arrow" markerWidth="8" markerHeight="6" refX="7" refY="3" orient="auto">{arrow}'
        )
        paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
        return "\n".join([head, f"<defs>{marker}</marker></defs>", paper, *self.parts, "</svg>", ""])
