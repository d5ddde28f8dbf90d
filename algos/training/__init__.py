"""The machinery around the algorithms. It knows none of them by name: it reads algos.ALGORITHMS."""

import sys

from algos.packages import is_a_stage, start_quickly

if is_a_stage(sys.orig_argv):
    start_quickly()
