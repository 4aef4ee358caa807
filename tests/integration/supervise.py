"""A supervisor over stand-in commands, as a process of its own: ``python -m tests.integration.supervise FOLDER``.

Roles are read from ``FOLDER/roles.json``: fields of `Role`, where ``answers`` is a file that exists once the role
answers. Pauses between starts are a tenth of the real ones.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from penstock import supervisor
from penstock.child import Role


def read_role(fields: dict[str, Any]) -> Role:
    answers = fields.pop("answers", None)
    probe: Callable[[], bool] | None = Path(answers).exists if answers else None
    command, needs = tuple(fields.pop("command")), tuple(fields.pop("needs", ()))
    return Role(command=command, needs=needs, answers=probe, **fields)


def main(folder: Path) -> int:
    supervisor.BACKOFF_BASE_S /= 10
    say = partial(print, flush=True)
    roles = [read_role(fields) for fields in json.loads((folder / "roles.json").read_text())]
    return supervisor.Supervisor(roles, folder, say=say).run(lambda: say("all answer"))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
