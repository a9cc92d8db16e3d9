"""Which nodes of a circuit does it need, and are they enough by themselves?"""

from circuits import load
from experiments import TASKS, dataset_circuit, minimality

model = load("tiny")
task = TASKS["agreement_within_rc"]  # "the poet that the drivers" -> remember, not remembers
found_on, heldout = task.prompts("train", n=12), task.prompts("heldout", n=6)

circuit = dataset_circuit(model, found_on, task.metric, k=150)
# each node is dropped alone, and beside it random nodes that were added to the circuit
tested = minimality(model, heldout, task.metric, circuit.nodes, n_inflations=100)
print(tested.text(15))
print(tested)
tested.plot("agreement_within_rc.svg")
