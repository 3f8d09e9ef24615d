"""Draws the pictures of docs/time.md: `python docs/pictures.py` writes docs/pictures/*.svg."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
INK, MUTED, SEEN, UNSEEN, BAND, MARK = "#1f2937", "#6b7280", "#2563eb", "#cbd5e1", "#dbeafe", "#dc2626"


class Picture:
    """SVG elements on a white sheet, 760 wide; x in pixels."""

    def __init__(self, height: int, title: str) -> None:
        self.height = height
        self.title = title
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, color: str = INK, anchor: str = "middle", size: int = 13) -> None:
        safe = text.replace("&", "&amp;").replace("<", "&lt;")
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" font-size="{size}" text-anchor="{anchor}">{safe}</text>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, color: str = INK, width: float = 1.5, dash: str = ""
    ) -> None:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" stroke-width="{width:g}"{dashes}/>'
        )

    def dot(self, x: float, y: float, color: str = SEEN, radius: float = 6) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{color}"/>')

    def band(self, x1: float, x2: float, y: float, height: float, color: str = BAND) -> None:
        self.parts.append(f'<rect x="{x1:g}" y="{y:g}" width="{x2 - x1:g}" height="{height:g}" fill="{color}" rx="3"/>')

    def path(self, points: list[tuple[float, float]], color: str = SEEN) -> None:
        line = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')

    def axis(self, y: float, label: str = "event time") -> None:
        self.line(40, y, 730, y)
        self.parts.append(f'<path d="M730 {y - 4:g} L738 {y:g} L730 {y + 4:g} Z" fill="{INK}"/>')
        self.text(738, y + 20, label, MUTED, "end", 12)

    def svg(self) -> str:
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {self.height}" width="760" '
            f'height="{self.height}" font-family="system-ui, sans-serif" role="img">\n'
            f"<title>{self.title}</title>\n"
            f'<rect width="760" height="{self.height}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )


def latest_row() -> Picture:
    p = Picture(210, "The latest row at T, with a ttl")
    p.band(300, 560, 70, 60)
    p.text(430, 62, "ttl", SEEN)
    p.axis(100)
    for x, label, color in (
        (120, "age 33", UNSEEN),
        (260, "age 34", UNSEEN),
        (420, "age null", SEEN),
        (650, "age 36", UNSEEN),
    ):
        p.dot(x, 100, color)
        p.text(x, 150, label, INK if color == SEEN else MUTED)
    p.line(560, 40, 560, 130, MARK, 2)
    p.text(560, 32, "T", MARK, size=15)
    p.text(
        40,
        190,
        "At T the answer is the row before it that is nearest, if ttl reaches it. Its null is an answer too.",
        MUTED,
        "start",
        12,
    )
    return p


def window() -> Picture:
    p = Picture(230, "A sawtooth window at T")
    p.band(147, 590, 70, 60)
    p.axis(100)
    for step in range(8):
        x = 60 + step * 87
        p.line(x, 92, x, 108, MUTED, 1)
    p.text(103, 84, "hop", MUTED, size=12)
    p.line(62, 88, 145, 88, MUTED, 1)
    for x, color in (
        (90, UNSEEN),
        (170, SEEN),
        (222, SEEN),
        (300, SEEN),
        (335, SEEN),
        (480, SEEN),
        (560, SEEN),
        (590, UNSEEN),
        (640, UNSEEN),
    ):
        p.dot(x, 100, color)
    p.line(590, 40, 590, 130, MARK, 2)
    p.text(590, 32, "T", MARK, size=15)
    p.line(190, 150, 590, 150, INK, 1)
    p.text(390, 168, "window")
    p.line(190, 110, 190, 156, INK, 1, "3 3")
    p.text(147, 62, "floor(T - window, hop)", SEEN)
    p.text(
        40,
        206,
        "The near end is T itself, and an event at T is not seen yet. The far end moves in steps of hop.",
        MUTED,
        "start",
        12,
    )
    return p


def sawtooth() -> Picture:
    p = Picture(230, "How long the window is as T moves")
    p.axis(180, "T")
    p.line(60, 180, 60, 30, INK)
    p.text(66, 30, "length looked at", MUTED, "start", 12)
    points: list[tuple[float, float]] = []
    for step in range(7):
        x = 60 + step * 90
        points += [(x, 120), (x + 90, 70)]
    p.path(points)
    p.line(60, 120, 700, 120, MUTED, 1, "4 4")
    p.line(60, 70, 700, 70, MUTED, 1, "4 4")
    p.text(706, 124, "window", MUTED, "start", 12)
    p.text(706, 74, "+ hop", MUTED, "start", 12)
    p.text(
        40,
        216,
        "So a 7-day window with a hop of 1 h looks at 7 days up to 7 days and 1 h: whole tiles, and the last events.",
        MUTED,
        "start",
        12,
    )
    return p


def snapshots() -> Picture:
    p = Picture(280, "Snapshots at daily boundaries, and the rows of a daily query")
    days = (70, 230, 390, 550, 710)
    p.axis(120, "")
    for number, x in enumerate(days):
        p.line(x, 104, x, 136, INK, 1)
        p.text(x, 156, "midnight" if number == 0 else "", MUTED, size=12)
    for number, x in enumerate(days[:-1]):
        p.text(x + 80, 156, f"day {number + 1}", MUTED, size=12)
    for x in (110, 150, 260, 330, 420, 470, 500, 600):
        p.dot(x, 120, SEEN if x < 390 else UNSEEN)
    p.band(390, 550, 40, 26)
    p.text(470, 58, "value of the snapshot at b", SEEN, size=12)
    p.line(390, 30, 390, 136, SEEN, 2)
    p.text(390, 24, "b", SEEN, size=15)
    p.line(520, 30, 520, 136, MARK, 2)
    p.text(520, 24, "T", MARK, size=15)
    p.text(
        40,
        186,
        "Snapshot of windows: the value at T is that at the last boundary b, over events before b.",
        MUTED,
        "start",
        12,
    )
    p.band(230, 388, 206, 24)
    p.text(309, 223, "${date} = day 2", SEEN, size=12)
    p.band(392, 550, 206, 24, "#dcfce7")
    p.text(471, 223, "its rows are valid", "#15803d", size=12)
    p.text(
        40,
        258,
        "Daily SQL: the query for day 2 is valid from the start of day 3 (plus delay) until the next one is.",
        MUTED,
        "start",
        12,
    )
    return p


PICTURES = {"latest-row": latest_row, "window": window, "sawtooth": sawtooth, "snapshots": snapshots}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
