"""Along which paths does a latent reach the answer, and what do they leave over?"""

from attribution import attribute
from circuits import load
from experiments import TASKS, path_patch, strongest_paths
from experiments.kinds import zero
from graphs import AttributionGraph

model = load("tiny")
task = TASKS["city_country"]  # "... the city of Xiamen lies in" -> China
prompt = task.prompts("heldout", n=1)[0]
metric = task.metric(prompt)
print(prompt)

graph = AttributionGraph.from_attribution(attribute(model, prompt, metric, max_latents=300))
source = next(node for node in graph.latents() if node.site.layer == 0)
paths = strongest_paths(graph, source, 5)
# the source is taken out, as in the graph's edges, and only the edges of a path carry the change
patched = path_patch(model, prompt, metric, paths, graph=graph, kind=zero())
print(patched.summary().to_string())
print(patched)
patched.plot("city_country.svg")
