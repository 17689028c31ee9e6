"""The process that tests/test_startup.py looks into: ``manage.py check`` of the project in the working directory.

Prints one JSON object: the modules that were imported, and the Python calls that were made, by the file of ours that
made them, directly or not.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(str(find_spec("django_obs").origin)).parent) + os.sep  # type: ignore[union-attr]
COMMAND = os.path.join("django", "core", "management", "base.py")


class Count:
    """Python calls by owner: the innermost file of ours among the callers, or nobody."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.owners = [""]

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            code = frame.f_code
            file = code.co_filename
            if file.startswith(PACKAGE):
                owner = file.removeprefix(PACKAGE)
            elif file.endswith(COMMAND):
                # What goes on inside of our wrapper is the command's own work.
                owner = ""
            else:
                owner = self.owners[-1]
            self.owners.append(owner)
            # How often finders are asked depends on the length of sys.path, and on who else has finders there.
            if not file.startswith("<frozen importlib") and code.co_name != "find_spec":
                self.calls[owner] += 1
        elif event == "return" and len(self.owners) > 1:
            self.owners.pop()


def main() -> None:
    sys.path.insert(0, os.getcwd())
    count = Count()
    from django.core.management import execute_from_command_line

    sys.setprofile(count)
    execute_from_command_line(["manage.py", "check"])
    sys.setprofile(None)
    found = {"modules": sorted(sys.modules), "calls": dict(count.calls), "stdlib": sorted(sys.stdlib_module_names)}
    print(json.dumps(found), file=sys.__stderr__)


if __name__ == "__main__":
    main()
