"""Every choice of sites, width and L0 means one file."""

import csv
import random
from collections import defaultdict
from importlib import resources

import pytest

from circuits.catalogue import CANONICAL_L0, DictionaryFile, catalogue, choose_files
from circuits.errors import UserError
from circuits.loading.gemma_scope import gemma_scope, scope_files
from circuits.loading.models import HUB_MODELS
from circuits.sites import ALL_KINDS, KINDS, Site, check_kinds

KIND_OF_COLUMN = {"att": "attn", "mlp": "mlp", "res": "resid", "transcoder": "transcoder"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    text = (resources.files("circuits") / "data" / "gemma_scope.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def site_of(row: dict[str, str]) -> Site:
    if row["layer"] == "embedding":
        return Site(0, "embed")
    return Site(int(row["layer"]), KIND_OF_COLUMN[row["site"]])


def test_every_row_is_chosen_by_its_model_site_layer_width_and_l0(rows):
    assert len(rows) == sum(map(len, catalogue().values())) == 2430
    for row in rows:
        site = site_of(row)
        l0 = row["average_l0"]
        (file,) = scope_files(
            row["model"], sites=(site.kind,), layers=[site.layer], width=row["width"], l0=l0
        )
        assert file == DictionaryFile(
            row["repo"], site, row["width"], float(l0), row["path"], row["canonical"] == "1"
        )
        layer = "embedding" if site.kind == "embed" else f"layer_{site.layer}"
        assert file.path == f"{layer}/width_{file.width}/average_l0_{l0}"
        (nearest,) = scope_files(
            row["model"], sites=site.kind, layers=(site.layer,), width=row["width"],
            l0=f"nearest:{float(l0) + 0.25}",
        )  # fmt: skip
        assert nearest == file


def test_repositories_are_named_as_the_hub_names_them(rows):
    suffix = {"att": "att", "mlp": "mlp", "res": "res", "transcoder": "transcoders"}
    for row in rows:
        size = row["model"].removeprefix("gemma-2-").removesuffix("-it")
        tuning = "it" if row["model"].endswith("-it") else "pt"
        assert row["repo"] == f"google/gemma-scope-{size}-{tuning}-{suffix[row['site']]}"
        assert row["model"] in HUB_MODELS
    assert len({row["repo"] for row in rows}) == 9
    assert list(catalogue()) == ["gemma-2-27b", "gemma-2-2b", "gemma-2-9b", "gemma-2-9b-it"]


def test_sites_of_all_kinds_sort_as_the_forward_pass_meets_them():
    sites = [Site(0, "embed")]
    sites += [Site(layer, kind) for layer in range(3) for kind in ALL_KINDS if kind != "embed"]
    assert sorted(random.Random(0).sample(sites, len(sites))) == sites
    assert [Site.parse(str(site)) for site in sites] == sites
    assert str(sites[0]) == "embed.0"
    assert check_kinds(reversed(ALL_KINDS)) == ALL_KINDS
    with pytest.raises(UserError, match=r"no site embed\.3; the embedding is embed\.0"):
        Site.parse("embed.3")


def test_the_embedding_and_transcoders_are_chosen_beside_the_default_kinds():
    assert KINDS == ("attn", "mlp", "resid")
    (embed,) = scope_files("gemma-2-2b", sites=("embed",))
    assert embed.path == "embedding/width_4k/average_l0_111"  # none marked: the nearest to 100
    chosen = scope_files("gemma-2-9b", sites=("resid", "embed"), layers=[7, 5], width="131k")
    assert [str(file.site) for file in chosen] == ["embed.0", "resid.5", "resid.7"]
    assert [file.width for file in chosen] == ["4k", "131k", "131k"]
    assert chosen[0].path == "embedding/width_4k/average_l0_80"
    chosen = scope_files("gemma-2-2b", sites=("transcoder", "mlp"), layers=[25])
    assert [str(file.site) for file in chosen] == ["transcoder.25", "mlp.25"]
    assert {file.source for file in chosen} == {
        "google/gemma-scope-2b-pt-transcoders",
        "google/gemma-scope-2b-pt-mlp",
    }
    assert len(scope_files("gemma-2-2b", sites="transcoder")) == 26


def test_wherever_layers_a_width_is_chosen_at_exactly_the_layers_that_have_it(rows):
    layers = defaultdict(set)
    for row in rows:
        site = site_of(row)
        layers[row["model"], site.kind, row["width"]].add(site.layer)
    for (model, kind, width), having in layers.items():
        files = scope_files(model, sites=kind, layers=having, width=width)
        assert [file.site for file in files] == [Site(n, kind) for n in sorted(having)]
        assert {file.width for file in files} == {width}


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
    every = [file for files in catalogue().values() for file in files]
    assert not any(file.canonical for file in every if file.site.kind in ("embed", "transcoder"))
    for file in (file for file in every if file.site.kind in KINDS):
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
            "no dictionary 32k wide at attn.0-25 of gemma-2-2b: there are 16k, 65k",
        ),
        (
            {"width": "1m", "sites": "resid"},
            "no dictionary 1m wide at resid.0-4, 6-11, 13-18, 20-25 of gemma-2-2b: "
            "there are 16k, 65k; layers 5, 12, 19 have it",
        ),
        (
            {"width": "2m", "sites": "resid", "layers": [4, 5, 6, 19]},
            "no dictionary 2m wide at resid.4-6, 19 of gemma-2-2b: "
            "there are 16k, 65k at layers 4, 6; 16k, 65k, 1m at layers 5, 19",
        ),
        (
            {"width": "65k", "sites": "transcoder"},
            "no dictionary 65k wide at transcoder.0-25 of gemma-2-2b: there are 16k",
        ),
        (
            {"width": "65k", "sites": "embed"},
            "no dictionary 65k wide at embed.0 of gemma-2-2b: there are 4k",
        ),
        (
            {"l0": 77, "sites": "transcoder"},
            "no dictionary with average L0 77 at transcoder.0 (and at 25 other sites), 16k wide, "
            "in google/gemma-scope-2b-pt-transcoders: there are 76; or ask for l0='nearest:77'",
        ),
        (
            {"layers": [26], "sites": ["resid", "embed"]},
            "no dictionary at resid.26; gemma-2-2b has embed at the embedding; "
            "resid at layers 0-25",
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
        ({"layers": []}, "layers is empty; name some, or leave it out for all"),
        ({"layers": [-1]}, "no layer -1; layers count from 0"),
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
    with pytest.raises(UserError) as error:
        gemma_scope("gemma-2-27b", sites=("resid", "embed", "transcoder"))
    assert str(error.value).startswith(
        "gemma-2-27b has no dictionaries of kind embed, transcoder, only resid at layers 10, 22, 34"
    )
    with pytest.raises(UserError, match=r"resid\.10, 22, 34 of gemma-2-27b: there are 131k"):
        gemma_scope("gemma-2-27b", sites="resid")
    with pytest.raises(UserError, match="has resid at layers 9, 20, 31"):
        gemma_scope("gemma-2-9b-it", sites="resid", layers=range(42))
    with pytest.raises(
        UserError, match="no dictionaries for 'gemma-2-2b-it', only for gemma-2-27b"
    ):
        gemma_scope("gemma-2-2b-it")
    files = choose_files(catalogue()["gemma-2-9b-it"], sites="resid", owner="9b-it")
    assert [file.site.layer for file in files] == [9, 20, 31]
