"""The system of a soak: short retention, so that what is kept must go while it runs; on demand with a defect."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.faults.fault_system import FaultSystem
from tests.soak import leaky
from tests.soak.mix import place_stretch
from tests.system import ROOT, Role

RETENTION_S: Final = 15


class SoakSystem(FaultSystem):
    """Two workers and a gateway; ``defect`` is a negative control (``tests/soak/leaky``)."""

    def __init__(self, kind: str, folder: Path, *, defect: str = "") -> None:
        super().__init__(
            kind,
            folder,
            PENSTOCK_RETENTION_S=str(RETENTION_S),
            PENSTOCK_DEAD_LETTER_RETENTION_S=str(RETENTION_S),
        )
        self._environment.update(_defective(defect) if defect else {})

    def start(self) -> SoakSystem:
        """Start everything, the model with many shapes too."""
        place_stretch(self.models)
        super().start()
        return self

    def restart_broker(self) -> None:
        """End the broker in good order and start it again; of kind ``redis`` it is the store too."""
        server = self.rabbit or self.store
        server.stop()
        server.start()

    def restart(self, role: Role) -> None:
        """End a process in good order, start it again, wait until all is ready."""
        role.stop()
        role.start()
        self.wait_ready()


def _defective(defect: str) -> dict[str, str]:
    """Environment of processes with a defect."""
    folders = [leaky.__path__[0], str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "SOAK_DEFECT": defect}
