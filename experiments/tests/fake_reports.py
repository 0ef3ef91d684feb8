#!/usr/bin/env python3
"""Stands in for `reports` in the tests of the commands that end with a verdict.

Says how many starts an arm needs, and otherwise prints what it was asked.
"""

import sys

if sys.argv[1] == "starts-needed":
    print(2)
else:
    print("reports was asked:", " ".join(sys.argv[1:]))
