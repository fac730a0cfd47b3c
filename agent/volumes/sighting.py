"""What is remembered of a protected disk: plain data, which imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """How the volume protected as `path` looked when it was last seen for certain, as which `device` of which machine.

    `at_path`: that was where its own path led. The rest is as in agent.volumes.candidates.Candidate."""

    path: str
    machine_id: str
    device: str
    at_path: bool
    size_bytes: int
    marks: list[str]
    serial: str
    attachment: str | None
    holds_state: bool
