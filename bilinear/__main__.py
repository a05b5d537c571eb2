"""`python -m bilinear`: the command of sweep.py, for an installed package."""

import sys

from bilinear.cli.start import main

sys.exit(main())
