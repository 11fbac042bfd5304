"""The screen of `amp4ec top`: nodes, models, the selected model's stages, and events; keys that act.

It is drawn anew when something was heard, at most once a second, and only the cells that changed. It uses
the terminal's own colours, sixteen at most, no mouse, and no motion.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import ClassVar, Protocol

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Static

from deploy.top import view
from deploy.top.feed import Source
from deploy.top.table import Table
from shared.client import NodeView
from shared.errors import Amp4ecError
from shared.logs import one_line

_TICK_S = 1.0
_SAID_S = 8.0
"""How long the outcome of a key is shown."""
HELP = """\
Up, Down     choose a node or a model
Tab          go to the other table
d            drain the chosen node, or use it again (asks first)
r            plan the chosen model anew
/            show only what has a text in it; Escape shows all
s            sort nodes by name, use, memory, queue
q            quit

rate, p50, p95   answers of the last second and their latency
queue, sent      items that wait, and that are with the nodes
slowest          the stage that a pipeline is as fast as

amp4ec status prints the same once; amp4ec story node NAME tells
what happened to a node.\
"""


class Operations(Protocol):
    """What the keys ask for; each returns what came of it, or raises an Amp4ecError that says why not."""

    async def drain(self, node: str) -> str:
        """Move what runs on the node elsewhere, and give it nothing."""

    async def uncordon(self, node: str) -> str:
        """Plan with the node again."""

    async def replan(self, model: str) -> str:
        """Plan the model anew, whether that pays or not."""


class _Question(ModalScreen[bool]):
    """Yes or no, by one key."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(f"{self._text}\n\ny  yes      n  no"), classes="box")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class _Help(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter,space", "close", "close")
    ]

    def compose(self) -> ComposeResult:
        yield Static(Text(HELP), classes="box wide")

    def action_close(self) -> None:
        self.dismiss()


class Top(App[None]):
    """See the module.

    Args:
        source: what is shown.
        operations: what the keys do.
    """

    TITLE = "amp4ec top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; }
    #head { height: 1; background: ansi_cyan; color: ansi_black; text-wrap: nowrap; }
    #head.away { background: ansi_red; color: ansi_bright_white; text-style: bold; }
    .title { height: 1; text-style: bold; color: ansi_cyan; text-wrap: nowrap; text-overflow: ellipsis; }
    Table { max-height: 35%; }
    #stages { max-height: 30%; }
    #events { height: 1fr; min-height: 3; text-wrap: nowrap; text-overflow: ellipsis; }
    #said { height: 1; display: none; text-style: bold; text-wrap: nowrap; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    _Question, _Help { align: center middle; }
    .box { border: round ansi_cyan; padding: 1 2; width: auto; height: auto; max-width: 100%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("d", "drain", "drain/use node"),
        Binding("r", "replan", "re-plan model"),
        Binding("s", "sort", "sort"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("question_mark", "help", "help", key_display="?"),
        Binding("escape", "all", "all", show=False),
    ]

    def __init__(self, source: Source, operations: Operations) -> None:
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self._source = source
        self._operations = operations
        self._sort: view.Sort = "name"
        self._wanted = ""
        self._drawn: tuple[object, ...] = ()
        self._busy: set[str] = set()
        self._written: dict[str, tuple[str, ...]] = {}
        self._said = ""

    def compose(self) -> ComposeResult:
        """The parts, from the top down."""
        yield Static(id="head")
        yield Static("NODES", id="nodes-title", classes="title")
        yield Table(view.NODE_COLUMNS, id="nodes")
        yield Static("MODELS", id="models-title", classes="title")
        yield Table(view.MODEL_COLUMNS, id="models")
        yield Static("STAGES", id="stages-title", classes="title")
        yield Table(view.STAGE_COLUMNS, id="stages", choose=False)
        yield Static("EVENTS", classes="title")
        with Vertical():
            yield Static(id="events")
        yield Static(id="said")
        yield Input(placeholder="show only what has this in it", id="filter")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to look."""
        self.theme = "ansi-dark"
        self.query_one("#nodes").focus()
        self.set_interval(_TICK_S, self._look)
        self._look()

    # --- what is shown

    def _look(self) -> None:
        """Draw anew where something is new."""
        away_s = self._source.away_s
        model = self.query_one("#models", Table).chosen
        now = (
            self._source.version,
            None if away_s is None else int(away_s),
            self._sort,
            self._wanted,
            self.size,
            model,
        )
        if now != self._drawn and len(self.screen_stack) == 1:
            self._drawn = now
            with self.batch_update():
                self._draw(away_s)

    def _draw(self, away_s: float | None) -> None:
        status = self._source.status()
        self.query_one("#head", Static).set_class(away_s is not None, "away")
        if away_s is None:
            self._put("#head", f" {self._source.address}  {view.headline(status)}")
        else:
            self._put(
                "#head",
                f" no connection to {self._source.address} for {away_s:.0f} s, trying again; "
                "below is old",
            )
        nodes = view.node_rows(status, sort=self._sort, wanted=self._wanted)
        models = view.model_rows(status, self._source.rates, wanted=self._wanted)
        self.query_one("#nodes", Table).show(nodes)
        table = self.query_one("#models", Table)
        table.show(models)
        chosen = None if table.chosen is None else status.model(table.chosen)
        stages = [] if chosen is None else view.stage_rows(status, chosen)
        self.query_one("#stages", Table).show(stages)
        shown = f", with {self._wanted!r} in it" if self._wanted else ""
        self._title("nodes", f"NODES by {self._sort}{shown}", none=not nodes, hint="amp4ec agent")
        self._title("models", f"MODELS{shown}", none=not models, hint="amp4ec serve MODEL")
        reason = "" if chosen is None else f" of {chosen.model}: {chosen.reason}"
        self._title("stages", f"STAGES{reason}", none=not stages)
        self._draw_events()

    def _title(self, of: str, text: str, *, none: bool, hint: str = "") -> None:
        """A part's title; an empty part has no table, but a word on how it is filled."""
        self.query_one(f"#{of}", Table).display = not none
        if none and hint and not self._wanted:
            text += f": none yet; `{hint}` makes one"
        self._put(f"#{of}-title", text)

    def _draw_events(self) -> None:
        """The latest that there is room for, the newest at the bottom."""
        place = self.query_one("#events", Static)
        lines = view.event_lines(self._source.events, wanted=self._wanted)
        room = max(place.size.height, 1)
        self._put("#events", *(lines[-room:] or ["(none yet)"]))

    def _put(self, where: str, *lines: str) -> None:
        """Write lines that may have changed."""
        if self._written.get(where) != lines:
            self._written[where] = lines
            self.query_one(where, Static).update(Text("\n".join(map(one_line, lines))))

    def on_resize(self) -> None:
        """There is more room, or less."""
        self.call_after_refresh(self._look)

    def on_table_chosen(self) -> None:
        """Another model was chosen: its stages are shown."""
        self._look()

    # --- what keys do

    def action_help(self) -> None:
        """What the keys are."""
        self.push_screen(_Help())

    def action_sort(self) -> None:
        """Sort nodes by the next column."""
        self._sort = view.SORTS[(view.SORTS.index(self._sort) + 1) % len(view.SORTS)]
        self._look()

    def action_filter(self) -> None:
        """Let a text be typed that is looked for."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.focus()

    def action_all(self) -> None:
        """Show everything again."""
        self.query_one("#filter", Input).value = ""
        self._end_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Look for what is typed, as it is typed."""
        self._wanted = event.value
        self._look()

    def on_input_submitted(self) -> None:
        """The text stands: keys act again."""
        self._end_filter()

    def _end_filter(self) -> None:
        self.query_one("#filter", Input).display = False
        self.query_one("#nodes").focus()
        self._look()

    def action_drain(self) -> None:
        """Drain the chosen node, or take that back; once the question is answered with yes."""
        node = self._chosen_node()
        if node is None:
            self._say("no node is chosen")
            return
        name = node.state.node
        if node.cordon is None:
            question = f"Drain {name}? What runs there moves elsewhere first; no answer is lost."
            act: Callable[[str], Awaitable[str]] = self._operations.drain
        else:
            question = f"Use {name} again? It was taken out of plans."
            act = self._operations.uncordon

        def answered(yes: bool | None) -> None:
            if yes:
                self._act(name, act)

        self.push_screen(_Question(question), answered)

    def _chosen_node(self) -> NodeView | None:
        chosen = self.query_one("#nodes", Table).chosen
        nodes = self._source.status().nodes
        return next((node for node in nodes if node.state.node == chosen), None)

    def action_replan(self) -> None:
        """Plan the chosen model anew."""
        model = self.query_one("#models", Table).chosen
        if model is None:
            self._say("no model is chosen")
        else:
            self._act(model, self._operations.replan)

    def _act(self, name: str, act: Callable[[str], Awaitable[str]]) -> None:
        """Ask the orchestrator, beside everything else; one thing at a time of each node and model."""
        if name in self._busy:
            self._say(f"{name}: the last key is still at work")
            return

        async def ask() -> None:
            self._busy.add(name)
            self._say(f"{name}: asked", lasting=True)
            try:
                self._say(await act(name))
            except Amp4ecError as error:
                self._say(f"{name}: {error}")
            finally:
                self._busy.discard(name)

        self.run_worker(ask(), name=f"ask for {name}", exit_on_error=True)

    def _say(self, text: str, *, lasting: bool = False) -> None:
        """A line above the keys, for a while."""
        line = self.query_one("#said", Static)
        line.update(Text(one_line(text)))
        line.display = True
        if not lasting:
            self._said = text
            self.set_timer(_SAID_S, lambda: self._unsay(text))

    def _unsay(self, text: str) -> None:
        if self._said == text:
            self.query_one("#said", Static).display = False
