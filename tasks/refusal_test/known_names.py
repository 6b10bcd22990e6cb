"""Ask who or what was X: famous names, obscure ones, and swapped halves of both.

A thin face of activation_logging.benchmarks; --help lists the flags.
"""

import sys

from activation_logging.benchmarks.script import main

if __name__ == "__main__":
    sys.exit(main("known_names"))
