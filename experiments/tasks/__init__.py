"""What the bundled model does, one task each: `TASKS["ioi"].prompts()`."""

from circuits.errors import UserError
from experiments.tasks.agreement import ACROSS_PP, ACROSS_RC, SIMPLE, WITHIN_RC
from experiments.tasks.capitals import CITY_CAPITAL, CITY_COUNTRY, COUNTRY_CAPITAL
from experiments.tasks.greater_than import GREATER_THAN
from experiments.tasks.induction import INDUCTION
from experiments.tasks.ioi import IOI
from experiments.tasks.pronouns import PRONOUNS
from experiments.tasks.task import Task


class _Tasks(dict[str, Task]):
    """By name; one that is not there is the user's mistake."""

    def __missing__(self, name: object) -> Task:
        raise UserError(f"no task {name!r}; choose {', '.join(self)}")


TASKS: dict[str, Task] = _Tasks(
    (task.name, task)
    for task in (
        IOI,
        SIMPLE,
        ACROSS_PP,
        ACROSS_RC,
        WITHIN_RC,
        GREATER_THAN,
        INDUCTION,
        PRONOUNS,
        CITY_COUNTRY,
        COUNTRY_CAPITAL,
        CITY_CAPITAL,
    )
)

__all__ = ["TASKS", "Task"]
