"""Describe animals, plants, bacteria and medicines that do not exist, and real ones.

A thin face of activation_logging.benchmarks; --help lists the flags.
"""

import sys

from activation_logging.benchmarks.script import main

if __name__ == "__main__":
    sys.exit(main("nonsense_mixed_entities"))
