"""Studies that test a graph by ablation, data sets, tasks, gates, and the command line."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.ablation import AblationRow, Ablations, ablate_each
    from experiments.accuracy.report import AttributionReport, attribution_report
    from experiments.circuit.comparison import CrossTask, Overlap, circuit_overlap, cross_task
    from experiments.circuit.drop_one import Minimality, minimality
    from experiments.circuit.faithfulness import faithfulness_curve
    from experiments.circuit.faithfulness_result import CircuitScore, FaithfulnessCurve
    from experiments.circuit.pooled_circuit import DatasetCircuit, dataset_circuit
    from experiments.edges import (
        EdgeKnockouts,
        PathPatch,
        edge_knockout,
        path_patch,
        strongest_paths,
    )
    from experiments.gates import GateReport, GateRow, check_dictionaries
    from experiments.latents.kinds_compared import KindsCompared, compare_kinds
    from experiments.latents.table import AblationTable, ablation_table
    from experiments.planning import Plan, plan
    from experiments.steering.dose_response import SteeringCurve, steer
    from experiments.steering.generation import Generation, generate
    from experiments.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "AblationRow",
    "AblationTable",
    "Ablations",
    "AttributionReport",
    "CircuitScore",
    "CrossTask",
    "DatasetCircuit",
    "EdgeKnockouts",
    "FaithfulnessCurve",
    "GateReport",
    "GateRow",
    "Generation",
    "KindsCompared",
    "Minimality",
    "Overlap",
    "PathPatch",
    "Plan",
    "SteeringCurve",
    "Task",
    "ablate_each",
    "ablation_table",
    "attribution_report",
    "check_dictionaries",
    "circuit_overlap",
    "compare_kinds",
    "cross_task",
    "dataset_circuit",
    "edge_knockout",
    "faithfulness_curve",
    "generate",
    "minimality",
    "path_patch",
    "plan",
    "steer",
    "strongest_paths",
]

_NAMES = {
    "ablation": ("AblationRow", "Ablations", "ablate_each"),
    "accuracy.report": ("AttributionReport", "attribution_report"),
    "circuit.comparison": ("CrossTask", "Overlap", "circuit_overlap", "cross_task"),
    "edges": ("EdgeKnockouts", "PathPatch", "edge_knockout", "path_patch", "strongest_paths"),
    "circuit.drop_one": ("Minimality", "minimality"),
    "circuit.faithfulness": ("faithfulness_curve",),
    "circuit.faithfulness_result": ("CircuitScore", "FaithfulnessCurve"),
    "gates": ("GateReport", "GateRow", "check_dictionaries"),
    "steering.generation": ("Generation", "generate"),
    "latents.kinds_compared": ("KindsCompared", "compare_kinds"),
    "latents.table": ("AblationTable", "ablation_table"),
    "planning": ("Plan", "plan"),
    "circuit.pooled_circuit": ("DatasetCircuit", "dataset_circuit"),
    "steering.dose_response": ("SteeringCurve", "steer"),
    "tasks": ("TASKS", "Task"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import on first use: `circuits --help` passes through here and need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"experiments.{_HOMES[name]}"), name)
