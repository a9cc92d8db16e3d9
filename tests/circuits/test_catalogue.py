"""Every choice of sites, width and L0 means one file."""

import sys
from collections import defaultdict
from pathlib import Path

import pytest

from circuits.catalogue import CANONICAL_L0, DictionaryFile, catalogue, choose_files
from circuits.errors import UserError
from circuits.gemma_scope import gemma_scope
from circuits.sites import KINDS, Site


def test_the_catalogue_holds_every_file():
    table = Path(sys.modules[DictionaryFile.__module__].__file__ or "").parent / "data"
    rows = (table / "gemma_scope.csv").read_text().splitlines()[1:]
    assert len(rows) == 2430
    left_out = [row for row in rows if ",transcoder," in row or ",embedding," in row]
    assert len(left_out) == 26 + 8
    assert sum(map(len, catalogue().values())) == 2430 - 34
    assert list(catalogue()) == ["gemma-2-27b", "gemma-2-2b", "gemma-2-9b", "gemma-2-9b-it"]


@pytest.mark.parametrize(("model", "n_layers"), [("gemma-2-2b", 26), ("gemma-2-9b", 42)])
@pytest.mark.parametrize("l0", ["canonical", "nearest:50"])
def test_every_site_of_2b_and_9b_has_a_16k_dictionary(model, n_layers, l0):
    files = choose_files(catalogue()[model], l0=l0, owner=model)
    assert [f.site for f in files] == [Site(n, kind) for n in range(n_layers) for kind in KINDS]
    assert {f.width for f in files} == {"16k"}
    suffix = {"attn": "att", "mlp": "mlp", "resid": "res"}
    size = model.removeprefix("gemma-2-")
    for file in files:
        assert file.source == f"google/gemma-scope-{size}-pt-{suffix[file.site.kind]}"
        assert file.path.startswith(f"layer_{file.site.layer}/width_16k/average_l0_")


def test_canonical_is_nearest_to_100_and_two_ties_are_broken_by_the_catalogue():
    groups = defaultdict(list)
    for file in (file for files in catalogue().values() for file in files):
        groups[file.source, file.site, file.width].append(file)
    unmarked, ties = [], []
    for (source, site, width), files in groups.items():
        marked = [file for file in files if file.canonical]
        if not marked:
            unmarked.append((source, str(site), width))
            continue
        distance = sorted(abs(file.average_l0 - CANONICAL_L0) for file in files)
        assert len(marked) == 1
        assert abs(marked[0].average_l0 - CANONICAL_L0) == distance[0]
        if distance[1] == distance[0]:
            ties.append((str(site), width, marked[0].average_l0))
    assert len(groups) - len(unmarked) == 429
    assert sorted(unmarked) == [
        ("google/gemma-scope-2b-pt-res", "resid.12", "131k"),
        ("google/gemma-scope-9b-pt-res", "resid.20", "262k"),
    ]
    # 66 and 134, 64 and 136: the column, not the rule, decides
    assert sorted(ties) == [("attn.23", "131k", 66.0), ("attn.27", "16k", 136.0)]
    chosen = choose_files(catalogue()["gemma-2-9b"], sites=["attn"], layers=[27], owner="9b")
    assert chosen[0].average_l0 == 136
    unmarked = choose_files(
        catalogue()["gemma-2-2b"], sites=["resid"], layers=[12], width="131k", owner="2b"
    )
    assert unmarked[0].average_l0 == 129


@pytest.mark.parametrize(
    ("l0", "expected"),
    [
        ("canonical", 103),
        (103, 103),
        ("103", 103),
        (38, 38),
        ("nearest:50", 38),
        ("nearest:9999", 606),
    ],
)
def test_l0_chooses_among_the_files_of_a_width(l0, expected):
    files = [
        DictionaryFile("r", Site(0, "mlp"), "16k", n, f"layer_0/width_16k/average_l0_{n}")
        for n in (14, 38, 62, 103, 606)
    ]
    (chosen,) = choose_files(files, sites=["mlp"], l0=l0, owner="r")
    assert chosen.average_l0 == expected


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            {"width": "32k"},
            "no dictionary 32k wide at attn.0 of gemma-2-2b: there are 16k, 65k",
        ),
        (
            {"width": "1m", "sites": "resid"},
            "no dictionary 1m wide at resid.0 of gemma-2-2b: there are 16k, 65k; "
            "layers 5, 12, 19 have it",
        ),
        (
            {"l0": 71, "sites": "mlp", "layers": [0]},
            "no dictionary with average L0 71 at mlp.0, 16k wide, in google/gemma-scope-2b-pt-mlp: "
            "there are 9, 16, 30, 60, 119; or ask for l0='nearest:71'",
        ),
        (
            {"layers": [25, 26], "sites": ["mlp"]},
            "no dictionary at mlp.26; gemma-2-2b has mlp at layers 0-25",
        ),
        (
            {"l0": "nearest"},
            "l0 is 'canonical', a number such as 71, or 'nearest:50'; got 'nearest'",
        ),
        ({"l0": "near:50"}, "got 'near:50'"),
        ({"l0": "nearest:nan"}, "got 'nearest:nan'"),
        ({"l0": "nearest:x"}, "got 'nearest:x'"),
        ({"l0": True}, "got True"),
        ({"sites": "residual"}, "no kind of site 'residual'"),
    ],
)
def test_a_choice_that_does_not_exist_is_answered_with_those_that_do(choice, says):
    with pytest.raises(UserError) as error:
        gemma_scope("gemma-2-2b", **choice)
    assert says in str(error.value)


def test_models_without_all_sites_say_which_they_have():
    with pytest.raises(UserError) as error:
        gemma_scope("gemma-2-9b-it")
    assert str(error.value) == (
        "gemma-2-9b-it has no dictionaries of kind attn, mlp, only resid at layers 9, 20, 31; "
        "leave out those it lacks"
    )
    with pytest.raises(UserError, match="has resid at layers 9, 20, 31"):
        gemma_scope("gemma-2-9b-it", sites="resid", layers=range(42))
    with pytest.raises(
        UserError, match="no dictionaries for 'gemma-2-2b-it', only for gemma-2-27b"
    ):
        gemma_scope("gemma-2-2b-it")
    files = choose_files(catalogue()["gemma-2-9b-it"], sites="resid", owner="9b-it")
    assert [file.site.layer for file in files] == [9, 20, 31]
