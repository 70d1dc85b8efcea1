"""`python -m timam` is the command line."""

from timam.cli import main

if __name__ == "__main__":
    main()
