"""Which latents carry a noun's number to its verb, and how sure is that?"""

from circuits import load
from experiments import TASKS, ablation_table
from experiments.spans import by_pattern
from experiments.tasks.spans import SPANS

model = load("tiny")
task = TASKS["agreement_simple"]  # "the kind man" -> remembers, not remember
found_on, heldout = task.prompts("train", n=12), task.prompts("heldout", n=12)


def spans(prompts):
    """A latent at the adjective is another node than the same latent at the subject."""
    return by_pattern(model, prompts, SPANS[task.name])


# each latent is set to its value on the partner with the noun of the other number
table = ablation_table(
    model,
    found_on,
    task.metric,
    spans=spans(found_on),
    heldout=heldout,
    heldout_spans=spans(heldout),
    max_latents=20,
)
print(table.text())
print(f"{table.frame()['confirmed'].sum()} of {len(table.nodes)} are confirmed on held-out prompts")
table.plot("agreement_simple.svg")
