"""`python -m lro`: the command line."""

from lro.cli import main

main()
