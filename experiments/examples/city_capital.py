"""Which method finds the best circuits? A study that goes on where it was stopped."""

from experiments.study import Study, run_study

study = Study(
    name="The capital of a city's country: methods compared",
    tasks=["city_capital"],
    methods=["gradient x activation", "integrated gradients", "RelP", "activation size", "random"],
    sizes=[10, 30, 100, 300],
    n_prompts=4,
    n_heldout=4,
    n_random=3,
)
report = run_study(study, "city_capital_study")
print(report.summary().to_string(index=False))
print(report.write("city_capital_study"))
