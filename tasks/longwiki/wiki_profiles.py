"""Write short biographies, country and element profiles, judged claim by claim.

A thin face of activation_logging.benchmarks; --help lists the flags.
"""

import sys

from activation_logging.benchmarks.script import main

if __name__ == "__main__":
    sys.exit(main("wiki_profiles"))
