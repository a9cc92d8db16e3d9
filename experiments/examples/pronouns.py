"""What happens when the latents behind an answer are turned up or down?"""

from circuits import load
from experiments import TASKS, dataset_circuit, generate, steer
from experiments.spans import whole

model = load("tiny")
task = TASKS["pronouns"]  # "Lisa went to the hospital because" -> she, not he
prompts = [p for p in task.prompts("heldout", n=30) if p.target == "she"]

circuit = dataset_circuit(model, prompts, task.metric, spans=whole(model, prompts), k=1)
curve = steer(model, prompts, circuit.nodes, task.metric, doses=[-2, -1, -0.5, 0.5, 1, 2, 4, 8])
print(curve.text())  # beside random directions of the same length, and what it does to other text
curve.plot("pronouns.svg")

for dose in (0, 2, 4, 8):
    said = generate(model, prompts[0], steer=curve.amounts(dose), max_new_tokens=6)
    print(f"dose {dose}: {said.text}")

# set to the dose in the place of what it has (clamped): at 0 it is taken out
clamped = steer(
    model, prompts, circuit.nodes, task.metric, mode="set", doses=[0.5, 1, 2, 4], n_random=3
)
print(clamped.text())
said = generate(model, prompts[0], steer=clamped.amounts(0), mode="set", max_new_tokens=6)
print(f"taken out: {said.text}")
