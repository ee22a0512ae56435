"""Runs the command line: python -m xsc."""

from xsc.cli.main import run

if __name__ == "__main__":
    run()
