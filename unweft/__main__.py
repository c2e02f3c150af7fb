"""`python -m unweft`: the command `unweft`."""

from emulation.cli import main

if __name__ == "__main__":  # device processes import this module again
    main()
