"""The ``afa`` command. Its verbs parse, call and print; torch is imported inside them, so ``--help`` is instant."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        import typer  # noqa: F401
    except ModuleNotFoundError:
        print("The afa command needs more packages. Run: pip install 'afa-lora[sft]'", file=sys.stderr)
        raise SystemExit(2) from None
    from afa_cli.app import run

    run()


__all__ = ["main"]
