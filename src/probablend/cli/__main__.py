"""``python -m probablend.cli``."""

from probablend.cli import main

main()
