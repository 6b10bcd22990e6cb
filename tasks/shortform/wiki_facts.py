"""Answer questions whose answer is a year, a number or a place.

A thin face of activation_logging.benchmarks; --help lists the flags.
"""

import sys

from activation_logging.benchmarks.script import main

if __name__ == "__main__":
    sys.exit(main("wiki_facts"))
