"""How far a job is, as the queue knows it and the driver shows it."""

import time
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class JobState:
    """How far one job is."""

    name: str
    num_steps: int = 0
    num_done: int = 0
    first_step: int = 0
    """Steps that were done before these ranks took it up, by ranks that died or an earlier run."""
    note: str = ""
    """What the last step found; of a job that broke off, why."""
    started: float = 0.0
    """Seconds since the epoch; 0 before it began."""
    stage: str = ""
    """What it is at, as in "evaluation before"; empty where it has one stage alone."""
    stage_started: float = 0.0
    """Seconds since the epoch."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took that is behind it."""
    status: str = ""
    """How it ended: "ok", or as the record of a cell says; empty before."""
    ended: float = 0.0
    """Seconds since the epoch; 0 before it has."""
    heard: float = 0.0
    """When its ranks last told of it, in seconds since the epoch."""

    def enter(self, stage: str) -> None:
        """Begin a stage, which ends the one before."""
        self.heard = now = time.time()
        if self.stage:
            self.stages_s[self.stage] = now - self.stage_started
        self.stage, self.stage_started = stage, now
