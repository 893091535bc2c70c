"""The progress of a command that works for minutes: a bar on a terminal, elsewhere lines."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")


class Steps:
    """Announces each step of a command's work, on standard error where there is no terminal.

    What is piped on is then the results alone. To be entered around the work.
    """

    def __init__(self, console: Console) -> None:
        """Shows nothing before it is entered."""
        self._console = console
        self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._lines = Console(stderr=True, soft_wrap=True, quiet=console.quiet)

    def each(
        self, doing: str, items: Iterable[T], name: Callable[[T], Any] = lambda item: item
    ) -> Iterator[T]:
        """The items, one after another, each announced (by its `name`) before it is worked on."""
        found = list(items)
        task = self._bar.add_task(doing, total=len(found))
        for number, item in enumerate(found, start=1):
            if not self._console.is_terminal:
                line = f"{doing} {name(item)} ({number} of {len(found)})"
                self._lines.print(line, markup=False, highlight=False)
            yield item
            self._bar.advance(task)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
