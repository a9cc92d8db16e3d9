"""Is a circuit found on some prompts enough for others, and is it needed there?"""

from circuits import load
from experiments import TASKS, dataset_circuit, faithfulness_curve
from experiments.kinds import patch
from experiments.spans import by_pattern
from experiments.tasks.spans import SPANS

model = load("tiny")
task = TASKS["agreement_rc"]  # "the victim that the architects follow" -> avoids, not avoid
found_on, heldout = task.prompts("train", n=12), task.prompts("heldout", n=12)
spans, heldout_spans = (by_pattern(model, some, SPANS[task.name]) for some in (found_on, heldout))

circuit = dataset_circuit(
    model, found_on, task.metric, spans=spans, test=heldout, test_spans=heldout_spans, k=100
)
print(circuit.text(10))

# errors keep their clean values, so that everything must come through the circuit's latents
curve = faithfulness_curve(
    model,
    heldout,
    task.metric,
    circuit.nodes,
    spans=heldout_spans,
    reference=patch(),
    downstream="freeze",
    sizes=[10, 30, 100],
)
# without these nodes nothing is left, with them alone neither: needed, but far from enough
print(curve.text())
curve.plot("agreement_rc.svg")
