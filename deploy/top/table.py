"""A table of texts with a cursor, drawn line by line.

Textual's own renders each cell through Rich, whatever changed: three such tables took 3 % of a core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from deploy.top import view
from shared.logs import one_line

_STYLES: dict[view.Tone, Style] = {
    "": Style(),
    "good": Style(color="green"),
    "warn": Style(color="yellow"),
    "bad": Style(color="red", bold=True),
    "faint": Style(color="bright_black"),
}
_HEAD = _STYLES["faint"]
_CHOSEN = Style(color="bright_white", bgcolor="blue", bold=True)
_CHOSEN_AWAY = Style(bold=True)
"""Of the row that is chosen while the keys go to another table."""
_GAP = "  "
_FAR = 1_000_000


class Table(Widget, can_focus=True):
    """Rows below their columns' names; as high as they are, scrolled where there is no room for all.

    Args:
        columns: their names; those of `view.RIGHT` are set to the right.
        choose: whether one row is chosen, by the arrow keys.
    """

    DEFAULT_CSS = "Table { height: auto; width: 100%; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "move(-10)", show=False),
        Binding("pagedown", "move(10)", show=False),
        Binding("home", f"move({-_FAR})", show=False),
        Binding("end", f"move({_FAR})", show=False),
    ]

    class Chosen(Message):
        """Another row was chosen."""

    def __init__(
        self,
        columns: Sequence[str],
        *,
        id: str,  # noqa: A002 - Textual's name
        choose: bool = True,
    ) -> None:
        super().__init__(id=id)
        self.can_focus = choose
        self._choose = choose
        self._columns = columns
        self._rows: list[view.Row] = []
        self._widths: list[int] = [len(name) for name in columns]
        self._cursor = 0

    @property
    def chosen(self) -> str | None:
        """The key of the row that is chosen; None where there is none."""
        return self._rows[self._cursor].key if self._choose and self._rows else None

    def show(self, rows: Sequence[view.Row]) -> None:
        """Show these rows; the one that was chosen stays so, wherever it has gone."""
        before, chosen, top = self._rows, self.chosen, self._top
        self._rows = list(rows)
        keys = [row.key for row in rows]
        if chosen in keys:
            self._cursor = keys.index(chosen)
        self._cursor = max(0, min(self._cursor, len(rows) - 1))
        widths = [
            max([len(name), *(cell_len(row.cells[index].text) for row in rows)])
            for index, name in enumerate(self._columns)
        ]
        if len(before) != len(rows):
            self.refresh(layout=True)
        elif widths != self._widths or top != self._top or self.chosen != chosen:
            self.refresh()
        else:
            for y, (old, new) in enumerate(zip(before, rows, strict=True)):
                if old != new and y >= top:
                    self.refresh(Region(0, y + 1 - top, self.size.width, 1))
        self._widths = widths

    def action_move(self, by: int) -> None:
        """Choose the row so many further down."""
        self._cursor = max(0, min(self._cursor + by, len(self._rows) - 1))
        self.refresh()
        self.post_message(self.Chosen())

    def on_focus(self) -> None:
        """The keys are ours."""
        self.refresh()

    def on_blur(self) -> None:
        """The keys are another's."""
        self.refresh()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002
        """The columns' names, and a line per row."""
        return len(self._rows) + 1

    @property
    def _top(self) -> int:
        """The first row that is seen: the chosen one is."""
        return max(0, self._cursor - max(self.size.height - 2, 0))

    def render_line(self, y: int) -> Strip:
        """The line `y` of what is seen of us."""
        index = self._top + y - 1
        if y == 0:
            return self._line([(name, _HEAD) for name in self._columns], self.rich_style)
        if index >= len(self._rows):
            return Strip.blank(self.size.width, self.rich_style)
        base = self.rich_style
        if self._choose and index == self._cursor:
            base += _CHOSEN if self.has_focus else _CHOSEN_AWAY
        row = self._rows[index]
        return self._line([(cell.text, _STYLES[cell.tone]) for cell in row.cells], base)

    def _line(self, cells: Sequence[tuple[str, Style]], base: Style) -> Strip:
        segments = [Segment(" ", base)]
        for (text, style), width, name in zip(cells, self._widths, self._columns, strict=True):
            shown = one_line(text)
            missing = max(width - cell_len(shown), 0) * " "
            shown = missing + shown if name in view.RIGHT else shown + missing
            segments.append(Segment(set_cell_size(shown, width) + _GAP, base + style))
        return Strip(segments).adjust_cell_length(self.size.width, base)
