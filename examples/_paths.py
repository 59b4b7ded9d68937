"""Import this first: `textworld.py` and `scienceworld.py` here have the names of the packages that they need."""

import os
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))
# Python looks first where the script is; here last.
sys.path[:] = [*(path for path in sys.path if os.path.realpath(path) != _HERE), _HERE]
