"""Train modular addition at every hidden width; `python sweep.py --help` says how."""

import sys

from bilinear.cli.start import main

if __name__ == "__main__":
    sys.exit(main())
