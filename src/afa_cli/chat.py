"""``afa chat``: a conversation with a run's model beside its base."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afa_cli.quiet import load_quietly

if TYPE_CHECKING:
    from afa_lora.tuning.chat import Chat


def chat(
    run: Annotated[Path, typer.Argument(help="The output folder of a run, or an adapter's folder.")],
    once: Annotated[str | None, typer.Option("--once", help="Ask this one question and end.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="The longest answer, in tokens.")
    ] = 256,
    base: Annotated[
        str | None, typer.Option("--base", help="The base model, if not the one that the run or the adapter names.")
    ] = None,
) -> None:
    """Ask the trained model and its base the same questions.

    Both answer with their most likely tokens, and each remembers its own conversation. /reset forgets, /quit or Ctrl-D
    ends, Ctrl-C stops an answer.

    \b
    Examples:
      afa chat runs/quickstart
      afa chat runs/quickstart --once "What is 17 + 25?"
    """
    load_quietly()
    from afa_lora.tuning.chat import ConversationTooLongError, open_chat

    opened = open_chat(run, max_new_tokens, base, report=lambda text: typer.echo(text, err=True))
    if opened.beta > 0:
        typer.echo(f"The adapter is still annealing, β = {opened.beta:.4g}; it answers as it is.", err=True)
    if once is not None:
        _ask(opened, once.encode(errors="surrogateescape").decode(errors="replace"))  # what is no UTF-8 in it
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    typer.echo("Ask something. /reset forgets the conversation, /quit or Ctrl-D ends, Ctrl-C stops an answer.")
    while (question := _read()) not in (None, "/quit"):
        if question == "/reset":
            opened.reset()
            typer.echo("Forgotten.")
        elif question:
            try:
                _ask(opened, question)
            except ConversationTooLongError as error:
                typer.echo(f"\nNot answered: {error}")


def _read() -> str | None:
    """A line from the user, or ``None`` at the end of the input."""
    try:
        return input("\n> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    except KeyboardInterrupt:
        return ""


def _ask(opened: Chat, question: str) -> None:
    try:
        for side in opened.sides:
            typer.echo(f"[{side.name}] ", nl=False)
            opened.answer(side, question, lambda text: typer.echo(text, nl=False))
            typer.echo()
    except KeyboardInterrupt:
        typer.echo("\nStopped; this question is not remembered where the answer was not finished.")
