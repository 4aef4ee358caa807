"""``python -m penstock``: the command line, without the console script."""

from penstock.cli import main

if __name__ == "__main__":
    main()
