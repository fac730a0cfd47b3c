"""Recovery plans: ordered groups of servers with health gates between them. Written as YAML; see docs/plans.md."""

from recovery.plans.fields import MAX_TEXT_CHARACTERS
from recovery.plans.model import (
    Caps,
    FailureRule,
    Group,
    Plan,
    PlanServer,
    Script,
    default_plan,
    without,
)
from recovery.plans.reading import parse_plan
from recovery.plans.writing import dump_plan

__all__ = [
    "MAX_TEXT_CHARACTERS",
    "Caps",
    "FailureRule",
    "Group",
    "Plan",
    "PlanServer",
    "Script",
    "default_plan",
    "dump_plan",
    "parse_plan",
    "without",
]
