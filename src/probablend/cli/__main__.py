"""``python -m probablend.cli``."""

from probablend.cli import main

if __name__ == "__main__":
    main()
