"""Ablation studies that test a graph, gates for dictionaries, tasks, and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.ablation import AblationRow, Ablations, ablate_each
    from experiments.faithfulness import CircuitScore, FaithfulnessCurve, faithfulness_curve
    from experiments.gates import GateReport, GateRow, check_dictionaries
    from experiments.planning import Plan, plan
    from experiments.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "AblationRow",
    "Ablations",
    "CircuitScore",
    "FaithfulnessCurve",
    "GateReport",
    "GateRow",
    "Plan",
    "Task",
    "ablate_each",
    "check_dictionaries",
    "faithfulness_curve",
    "plan",
]

_HOMES = {
    **dict.fromkeys(("TASKS", "Task"), "experiments.tasks"),
    **dict.fromkeys(("AblationRow", "Ablations", "ablate_each"), "experiments.ablation"),
    **dict.fromkeys(
        ("CircuitScore", "FaithfulnessCurve", "faithfulness_curve"), "experiments.faithfulness"
    ),
    **dict.fromkeys(("GateReport", "GateRow", "check_dictionaries"), "experiments.gates"),
    **dict.fromkeys(("Plan", "plan"), "experiments.planning"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: `circuits --help` passes through here and need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
