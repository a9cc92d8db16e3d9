"""Does the circuit of one task serve another?"""

from circuits import load
from experiments import TASKS, circuit_overlap, cross_task
from experiments.kinds import patch
from experiments.methods import Question, method_named
from experiments.spans import whole

model = load("tiny")
names = ("city_country", "country_capital", "city_capital")
by_effect = method_named("gradient x activation")

rankings, heldout = {}, {}
for name in names:
    prompts = TASKS[name].prompts("train", n=8)
    # of different tasks, positions have nothing in common: a node is a latent anywhere
    question = Question(model, prompts, whole(model, prompts), TASKS[name].metric, patch())
    rankings[name] = by_effect.rank(question)
    heldout[name] = TASKS[name].prompts("heldout", n=6)

print(circuit_overlap(rankings, sizes=[30, 100]).text())
metrics = {name: TASKS[name].metric for name in names}
crossed = cross_task(model, rankings, heldout, metrics, size=100, n_random=3)
print(crossed.text())
crossed.plot("country_capital.svg")
