from __future__ import annotations

import sys

from django.core.management import execute_from_command_line

from benchmarks.stacks import start

if __name__ == "__main__":
    start()
    execute_from_command_line(sys.argv)
