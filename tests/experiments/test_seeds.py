"""A seed that is none is told in one sentence before any work: here there is not even a model."""

import json
from typing import Any

import numpy as np
import pytest

from attribution import attribute_dataset, logit_diff
from attribution.bootstrap import MeanBootstrap
from circuits import Prompt, UserError
from experiments import (
    ablation_table,
    attribution_report,
    compare_kinds,
    cross_task,
    dataset_circuit,
    edge_knockout,
    faithfulness_curve,
    generate,
    minimality,
    steer,
)
from experiments.kinds import resample, zero
from experiments.methods import Question
from experiments.spans import Spans
from experiments.statistics import (
    cluster_interval,
    ratio_interval,
    sign_flip_p,
    top_k_inclusion,
)
from experiments.study.declaration import Study

NO_MODEL: Any = None
PROMPT = Prompt("w1 w5 w9 w2", target="w3", foil="w4", corrupted="w1 w6 w9 w2")
PROMPTS = [PROMPT, Prompt("w2 w5 w9 w2", target="w3", foil="w4", corrupted="w2 w6 w9 w2")]
METRIC = logit_diff(PROMPT)
NODES: Any = ["mlp.0/latent.3"]
ANY: Any = None
INT64: Any = np.int64
VALUES = np.arange(1.0, 13).reshape(4, 3)

SEEDED = {
    "attribute_dataset": lambda s: attribute_dataset(NO_MODEL, PROMPTS, seed=s),
    "MeanBootstrap": lambda s: MeanBootstrap(3, 2, seed=s),
    "cluster_interval": lambda s: cluster_interval(VALUES, seed=s),
    "ratio_interval": lambda s: ratio_interval(VALUES, VALUES[:, 0], seed=s),
    "top_k_inclusion": lambda s: top_k_inclusion(VALUES, k_top=1, seed=s),
    "sign_flip_p": lambda s: sign_flip_p(VALUES, n_permutations=3, seed=s),
    "ablation_table": lambda s: ablation_table(NO_MODEL, PROMPTS, seed=s),
    "compare_kinds": lambda s: compare_kinds(NO_MODEL, PROMPTS, ANY, kinds=[zero()], seed=s),
    "attribution_report": lambda s: attribution_report(NO_MODEL, PROMPTS, seed=s),
    "dataset_circuit": lambda s: dataset_circuit(NO_MODEL, PROMPTS, seed=s),
    "faithfulness_curve": lambda s: faithfulness_curve(
        NO_MODEL, PROMPT, METRIC, ANY, sizes=[1], seed=s
    ),
    "minimality": lambda s: minimality(NO_MODEL, PROMPT, METRIC, ANY, seed=s),
    "cross_task": lambda s: cross_task(NO_MODEL, {"a": []}, {"a": PROMPTS}, seed=s),
    "edge_knockout": lambda s: edge_knockout(NO_MODEL, PROMPT, METRIC, ANY, seed=s),
    "steer": lambda s: steer(NO_MODEL, PROMPTS, NODES, seed=s),
    "generate": lambda s: generate(NO_MODEL, "w1 w5", seed=s),
    "resample": lambda s: resample(PROMPTS, seed=s),
    "Question": lambda s: Question(
        NO_MODEL, PROMPTS, Spans(("all",), ({"all": (1,)},) * 2), logit_diff, zero(), seed=s
    ),
}


@pytest.mark.parametrize("seed", [-1, 1.0, "a", True, None])
@pytest.mark.parametrize("name", SEEDED)
def test_a_seed_that_is_none_is_refused_before_any_work(name, seed):
    with pytest.raises(UserError) as error:
        SEEDED[name](seed)
    assert str(error.value) == f"seed={seed!r}; give a whole number from 0 on"


def test_a_seed_of_numpy_is_one_and_can_be_written(model, tmp_path):
    how: dict[str, Any] = {"doses": [1], "neutral": ["w1 w2"], "n_bootstrap": 100}
    nodes = ["mlp.0/latent.30"]
    ours = steer(model, PROMPTS, nodes, seed=3, n_random=1, **how)
    theirs = steer(model, PROMPTS, nodes, seed=INT64(3), n_random=INT64(1), **how)
    assert ours.frame().equals(theirs.frame())
    path = theirs.save(tmp_path / "a.json")
    assert json.loads(path.read_text())["provenance"]["seed"] == 3
    study = Study("s", ["ioi"], seeds=[INT64(1), 2])
    assert json.dumps(study.seeds) == "[1, 2]"
