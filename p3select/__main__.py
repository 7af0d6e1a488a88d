"""``python -m p3select``."""

from p3select.cli import main

if __name__ == "__main__":
    main()
