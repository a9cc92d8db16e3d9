"""Which conclusions survive the choice of what an ablated latent is set to?"""

from circuits import load
from experiments import TASKS, compare_kinds, dataset_circuit
from experiments.kinds import mean_of, patch, resample, zero

model = load("tiny")
task = TASKS["greater_than"]  # "... from the year 17 31 to the year 17" -> 32 to 99
prompts, others = task.prompts("train", n=12), task.prompts("heldout", n=30)

latents = dataset_circuit(model, prompts, task.metric, k=20).nodes
kinds = [patch(), mean_of(others), resample(others, n=4), zero()]
compared = compare_kinds(model, prompts, latents, task.metric, kinds=kinds)
print(compared.text())
print(compared.correlations().to_string(index=False))
print(compared)
compared.plot("greater_than.svg")
