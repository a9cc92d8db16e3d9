"""Do the edges of a graph say what happens to their target when their source goes?"""

from attribution import attribute
from circuits import load
from experiments import TASKS, edge_knockout

model = load("tiny")
task = TASKS["induction"]  # a word that followed this one before follows it again
prompt = task.prompts("heldout", n=1)[0]
metric = task.metric(prompt)
print(prompt)

attribution = attribute(model, prompt, metric, max_latents=200)
knockouts = edge_knockout(model, prompt, metric, attribution, top=100, n_random=100)
print(knockouts)
print(knockouts.text(15))
knockouts.plot("induction.svg")
