"""``python -m afa_cli`` is ``afa``."""

from afa_cli import main

main()
