"""The models of one worker: what lies in its folder, verified by a trial load and published for the gateways.

The rules, with their reasons in ``docs/decisions/0011-model-versions.md``: one number means one set of files among
all living workers; what is broken never replaces what is good; a record that no worker holds is withdrawn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import redis
from msgspec.structs import replace

import postprocess.kinds
import preprocess.kinds
from inference import customops
from inference.files import Stamp, digests, without_root
from inference.repository import Version, is_version, place_of, read, scan, stamps
from inference.trial import trial
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import ModelRecord
from tasks.published import Published, same

log = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 120.0
HOLD_S = 300.0
_REMEDY = "put the verified files back, or give the changed ones another number"


@dataclass(frozen=True)
class Served:
    """A version that this worker can run, with its pre- and postprocessing made ready."""

    record: ModelRecord
    preprocess: preprocess.kinds.Kind
    postprocess: postprocess.kinds.Kind


class Catalog:
    """What a worker serves. ``publish`` once, then ``refresh`` again and again, from one thread; ``served`` from any.

    ``prepare`` is called with a version before it is served (ModelUnavailableError where it cannot be), ``retire``
    when it is served no longer. Both only while running: at the start, the worker warms what ``ready`` gives.
    """

    def __init__(
        self,
        client: redis.Redis,
        namespace: str,
        folder: Path,
        pools: tuple[str, ...],
        *,
        holder: str = "worker",
        hold_s: float = HOLD_S,
        custom_ops: bool = False,
    ) -> None:
        self._published = Published(client, namespace, holder, hold_s)
        self._folder = folder
        self._pools = pools
        self._custom_ops = custom_ops
        self._served: dict[str, Served] = {}
        self._held: dict[str, ModelRecord] = {}
        """What we tell the store that we can run; and what is broken here, so that nobody withdraws that."""
        self._waiting: set[str] = set()
        """Places whose files differ from what others hold."""
        self._stamps: dict[str, Stamp] = {}
        """What was last looked at."""
        self._last: dict[str, Stamp] = {}
        """What the last poll saw."""
        self._retiring: list[ModelRecord] = []
        self.prepare: Callable[[ModelRecord], None] = lambda _: None
        self.retire: Callable[[ModelRecord], None] = lambda _: None

    def publish(self) -> None:
        """Trial-load, in a child process each, what the store does not know yet; publish every record.

        SetupError where the folder is missing, or something in it is wrong and no version is right.
        """
        self._stamps = self._last = stamps(self._folder)
        found = scan(self._folder)
        if not found.versions:
            for fault in found.faults.values():
                raise fault
        for place in self._stamps:
            self._look_at(place)

    def refresh(self) -> None:
        """Poll once: take up what was added or changed and is at rest, let go of what is gone, agree with the store.

        SetupError where the folder is missing, and then nothing changes.
        """
        retiring, self._retiring = self._retiring, []
        for record in retiring:
            self.retire(record)
        seen = stamps(self._folder)
        settled = {place for place in {*seen, *self._stamps} if seen.get(place) == self._last.get(place)}
        changed = [place for place in sorted(settled) if seen.get(place) != self._stamps.get(place)]
        self._last = seen
        for place in changed:
            self._renew()
            if place in seen:
                self._stamps[place] = seen[place]
                self._published.let_go(place)
                self._look_at(place)
            else:
                self._forget(place)
        self._agree()

    def leave(self) -> None:
        """Hold nothing any more: this worker ends."""
        for place in self._held:
            self._published.let_go(place)

    def served(self, model: str, version: int) -> Served:
        """What runs a version; ModelUnavailableError where this worker has none that loads."""
        place = place_of(model, version)
        found = self._served.get(place) or self._adopted(place)
        if found is None:
            raise ModelUnavailableError(f"This worker has no version {version} of {model} that loads.")
        return found

    def ready(self) -> Iterator[ModelRecord]:
        """The versions that this worker's pools serve."""
        return (each.record for each in list(self._served.values()) if each.record.config.pool in self._pools)

    # --- One place of the folder ---

    def _look_at(self, place: str) -> None:
        """Serve the version that lies at ``place`` now, if it is right and no other worker holds a different one."""
        try:
            version = read(self._folder, place)
            libraries = self._libraries(version)
            record = self._known(version)
            if record is None and self._is_taken(version):
                self._wait(place, "other workers hold this version with other files")
                return
        except SetupError as error:
            self._refuse(place, error)
            return
        record = record or self._try(version, libraries)
        if record.state == "ready":
            self._take_up(place, record, version.folder)
        else:
            self._keep_what_is_good(place, record)

    def _known(self, version: Version) -> ModelRecord | None:
        """What the store says of this very version, if its files have not changed since."""
        record = self._published.get(place_of(version.name, version.version))
        if record is None or record.state != "ready" or record.config != version.config:
            return None
        return record if record.files == digests(version.folder, self._folder) else None

    def _libraries(self, version: Version) -> list[Path]:
        return customops.libraries(version.config, version.folder, self._folder, allowed=self._custom_ops)

    def _is_taken(self, version: Version) -> bool:
        """Whether others hold this number with other files: then these are not tried as long as they do."""
        record = ModelRecord(version.name, version.version, "ready", version.config)
        return self._published.is_taken(replace(record, files=digests(version.folder, self._folder)))

    def _wait(self, place: str, why: str) -> None:
        if place not in self._waiting:
            self._waiting.add(place)
            log.error("model version not taken up", extra={"version": place, "reason": why, "remedy": _REMEDY})
        self._held.pop(place, None)

    def _try(self, version: Version, libraries: Sequence[Path]) -> ModelRecord:
        """Trial-load the version and prepare it; ready, or broken with a reason."""
        self._published.announce(ModelRecord(version.name, version.version, "loading", version.config))
        record = _checked(trial(version.folder, version.config, TRIAL_TIMEOUT_S, libraries), version.folder)
        if record.state == "ready" and record.config.pool in self._pools:
            try:
                self.prepare(record)
            except ModelUnavailableError as error:
                record = replace(record, state="broken", reason=error.detail)
        level = logging.INFO if record.state == "ready" else logging.ERROR
        found = {"model": record.name, "version": record.version, "state": record.state, "reason": record.reason}
        log.log(level, "model version tried", extra=found)
        return record

    def _take_up(self, place: str, record: ModelRecord, folder: Path) -> None:
        try:
            made = _serve(record, folder)
        except SetupError as error:  # a step's code is not sound here, or not allowed
            self._keep_what_is_good(place, replace(record, state="broken", reason=str(error)))
            return
        if not (self._published.hold(record) or self._published.put(record)):
            self._wait(place, "other workers published this version with other files meanwhile")
            return
        self._waiting.discard(place)
        self._held[place] = record
        self._swap(place, made)

    def _keep_what_is_good(self, place: str, broken: ModelRecord) -> None:
        """Publish that a version is broken; but where a good one of its number is in memory, go on with that."""
        served = self._served.get(place)
        if served is not None and self._published.hold(served.record):
            self._held[place] = served.record
            extra = {"version": place, "reason": broken.reason, "remedy": _REMEDY}
            log.error(
                "changed files are broken: the version goes on from memory, until this worker ends", extra=extra
            )
        elif self._published.put(broken):
            self._held[place] = broken
            self._swap(place, None)
        else:
            self._wait(place, f"it is broken here ({broken.reason}), and other workers hold one that is not")
            return
        self._waiting.discard(place)

    def _refuse(self, place: str, error: SetupError) -> None:
        """A place that is wrong before anything is loaded; one of no version's name has no record."""
        if place not in self._waiting:
            log.error("model version refused: %s", error, extra={"version": place})
        name, _, number = place.partition("/")
        if is_version(place):
            reason = without_root(error, self._folder)
            self._keep_what_is_good(place, ModelRecord(name, int(number), "broken", reason=reason))

    def _forget(self, place: str) -> None:
        """The folder of a version is gone; what is in memory is served until the record is withdrawn."""
        del self._stamps[place]
        self._published.let_go(place)
        self._held.pop(place, None)
        self._waiting.discard(place)

    def _swap(self, place: str, served: Served | None) -> None:
        """Serve this from now on; what was served before is retired at the next poll, when its stages have ended."""
        before = self._served.pop(place, None) if served is None else self._served.get(place)
        if served is not None:
            self._served[place] = served
        if before is not None and (served is None or not same(before.record, served.record)):
            self._retiring.append(before.record)

    # --- All of them ---

    def _agree(self) -> None:
        """Hold on to what we hold, look again at what waited, withdraw what nobody of our pools can run."""
        self._renew()
        known = self._published.all()
        for place in list(self._served):
            if place not in self._held and (place not in known or not same(known[place], self._served[place].record)):
                self._swap(place, None)
        for place in list(self._waiting):
            self._look_at(place)
        for place, record in known.items():
            if place not in self._stamps and record.config.pool in self._pools and self._published.withdraw(place):
                log.info("model version withdrawn: no worker has it any more", extra={"version": place})

    def _renew(self) -> None:
        """Go on holding what we hold; between two trials, too, which take their time."""
        for place, record in list(self._held.items()):
            if not (self._published.hold(record) or self._put_again(record)):
                self._wait(place, "other workers published this version with other files")

    def _put_again(self, record: ModelRecord) -> bool:
        """Publish what we hold and the store has forgotten."""
        place = place_of(record.name, record.version)
        return self._published.get(place) is None and self._published.put(record)

    def _adopted(self, place: str) -> Served | None:
        """Serve at once what another worker published and our folder has: a job of it came before our own poll."""
        try:
            version = read(self._folder, place)
            self._libraries(version)
            record = self._known(version)
            if record is None:
                return None
            self._served[place] = served = _serve(record, version.folder)
        except (SetupError, redis.RedisError):
            return None
        return served


def _checked(record: ModelRecord, folder: Path) -> ModelRecord:
    """The record, or a broken one where its options contradict its signature or its files."""
    if record.state == "ready":
        try:
            _serve(record, folder)
        except SetupError as error:
            return replace(record, state="broken", reason=str(error))
    return record


def _serve(record: ModelRecord, folder: Path) -> Served:
    return Served(record, preprocess.kinds.kind(record, folder), postprocess.kinds.kind(record, folder))
