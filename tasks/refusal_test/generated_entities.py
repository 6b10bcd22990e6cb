"""Ask about things that a model has invented and no list knows, and about famous ones.

A thin face of activation_logging.benchmarks; --help lists the flags.
"""

import sys

from activation_logging.benchmarks.script import main

if __name__ == "__main__":
    sys.exit(main("generated_entities"))
