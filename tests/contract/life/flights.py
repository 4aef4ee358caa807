"""Who computes for whom, on the ledger's side: jobs of one line with one cache key fly together."""

from __future__ import annotations

from tests.contract.life.entries import Job

FOLLOWERS_AT_ONCE = 2
"""In these plays: a flight of four is a big one."""


class Flights:
    """By name of the flight: who leads, and who follows, in order; by leader: who is yet to be told its answer."""

    def __init__(self) -> None:
        self.leaders: dict[str, Job] = {}
        self.followers: dict[str, list[Job]] = {}
        self.landed: dict[str, list[Job]] = {}

    def join(self, job: Job, now: int, *, may_follow: bool) -> bool:
        """A job takes off; whether it follows another."""
        if not job.cache:
            return False
        if self.leaders.setdefault(name(job), job) is job or not may_follow:
            return False
        job.place, job.joined_at = "followers", now
        others = self.followers.get(name(job), [])
        self.followers[name(job)] = sorted([*others, job], key=lambda each: (each.joined_at, each.task_id))
        return True

    def forget(self, job: Job) -> None:
        """A follower ended by itself."""
        for waiting in (self.followers, self.landed):
            for key, jobs in list(waiting.items()):
                if job in jobs:
                    jobs.remove(job)
                if not jobs:
                    del waiting[key]

    def dissolve(self, leader: Job) -> list[Job]:
        """Those who followed a leader that has ended, in their order."""
        if self.leaders.get(name(leader)) is not leader:
            return []
        del self.leaders[name(leader)]
        return self.followers.pop(name(leader), [])

    def lead(self, jobs: list[Job]) -> None:
        """The first of these leads the others now."""
        first, *others = jobs
        self.leaders[name(first)], first.place = first, "line"
        if others:
            self.followers[name(first)] = others

    def land(self, leader: Job, jobs: list[Job]) -> None:
        """These will hear of the leader's answer."""
        self.landed[leader.task_id] = jobs
        for job in jobs:
            job.place = "landed"

    def tell(self, leader_id: str, most: int) -> list[Job]:
        """The next ones who hear of it."""
        told, rest = self.landed[leader_id][: max(0, most)], self.landed.pop(leader_id)[max(0, most) :]
        if rest:
            self.landed[leader_id] = rest
        return told

    def leader_of(self, job: Job) -> Job | None:
        """Whom a job follows now."""
        return self.leaders[name(job)] if job.place == "followers" else None


def name(job: Job) -> str:
    """The flight of a job."""
    return f"{job.line} {job.cache}"
