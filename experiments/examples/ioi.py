"""Which latents make the model answer "Mary"?"""

from attribution import attribute, logit_diff
from circuits import Prompt, load
from experiments import ablate_each, faithfulness_curve
from graphs import AttributionGraph, prune, render

model = load("tiny")  # or "gemma-2-2b": Gemma Scope at every layer and sublayer
prompt = Prompt(
    "when Mary and John went to the store , John gave a drink to", target="Mary", foil="John"
)
metric = logit_diff(prompt)

attribution = attribute(model, prompt, metric, max_latents=400)
graph = AttributionGraph.from_attribution(attribution)
circuit = prune(graph, keep_influence=0.8)
render(circuit, "ioi.html")  # .html interactive; .svg .png .pdf .dot through graphviz

for row in ablate_each(model, prompt, metric, circuit.latents(top=10)):
    print(f"{row.node}  attributed {row.attributed:+.3f}  measured {row.measured:+.3f}")

curve = faithfulness_curve(model, prompt, metric, graph, sizes=[10, 30, 100, 300])
curve.plot("ioi_faithfulness.svg")
