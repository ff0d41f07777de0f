"""Lines for the user as they are: without markup, colours or line breaks, so that paths can be copied."""

from rich.console import Console

__all__ = ["say"]


def say(console: Console, text: str) -> None:
    """Print `text` and change nothing in it."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
