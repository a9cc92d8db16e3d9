"""Studies: tasks x methods x ablations x seeds, declared in a few lines, run cell by cell."""

from experiments.study.declaration import Study, read_study
from experiments.study.report import StudyReport
from experiments.study.runner import run_study

__all__ = ["Study", "StudyReport", "read_study", "run_study"]
