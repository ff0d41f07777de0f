"""A bar on the terminal while a command goes through events, with their rate and the time that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["event_bar"]


class _EventRate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} events/s")


@contextmanager
def event_bar(console: Console, title: str, events: int) -> Iterator[Callable[[int], None]]:
    """Show a bar while it is entered; call the function that it gives with the number of events that are done."""
    columns = (TextColumn(title), BarColumn(bar_width=20), MofNCompleteColumn(), _EventRate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=events)
        yield lambda done: bar.update(task, completed=done)
