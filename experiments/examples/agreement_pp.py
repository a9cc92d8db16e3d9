"""Does attribution foretell what ablation does, one latent at a time and a whole site at once?"""

from circuits import load
from experiments import TASKS, attribution_report

model = load("tiny")
task = TASKS["agreement_pp"]  # "the carpenter beside the cats" -> avoids, not avoid

report = attribution_report(model, task.prompts("heldout", n=3), task.metric, n_nodes=25)
# gradient x activation is the estimator of the first question, joint integrated gradients of the
# second; "off -> on" are latents that have no gradient because they are not on yet
print(report.text())
report.plot("agreement_pp.svg")
report.save("agreement_pp.csv")
