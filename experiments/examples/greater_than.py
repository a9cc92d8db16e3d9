"""Which conclusions survive the choice of what an ablated latent is set to?"""

from circuits import load
from experiments import TASKS, ablation_table, compare_kinds
from experiments.kinds import mean_of, patch, resample, zero

model = load("tiny")
task = TASKS["greater_than"]  # "... from the year 17 31 to the year 17" -> 32 to 99
prompts, others = task.prompts("train", n=12), task.prompts("heldout", n=30)

latents = ablation_table(model, prompts, task.metric, max_latents=20, n_controls=0).nodes
kinds = [patch(), mean_of(others), resample(others, n=4), zero()]
compared = compare_kinds(model, prompts, latents, task.metric, kinds=kinds)
print(compared.text())
print(compared.correlations().to_string(index=False))
print(compared)
compared.plot("greater_than.svg")
