"""``python -m procreward`` is the ``procreward`` command."""

from procreward.cli import main

if __name__ == "__main__":
    main()
