"""Run the command line as ``python -m nodma``."""

from nodma.cli import main

main()
