"""Which library's format a dictionary on disk is in, and where in the model it says it belongs.

| in a folder | format | read by, beside this file |
| --- | --- | --- |
| `params.npz` | Gemma Scope | `npz` |
| `cfg.json`, `sae_weights.safetensors` | SAELens | `saelens` |
| `ae.pt`, `config.json` | dictionary_learning | `dictionary_learning` |
| `W_enc_0.safetensors`, `W_dec_0.safetensors`, ... | circuit-tracer | `circuit_tracer` |
| another `*.safetensors` without a `cfg.json` | plain | `load_plain`, here |
"""

from pathlib import Path

import torch

from circuits.catalogue import file_at
from circuits.dictionaries import ARRAYS, Dictionary
from circuits.errors import UserError
from circuits.formats import circuit_tracer, dictionary_learning, saelens
from circuits.formats.array_files import read_json, read_safetensors, safetensors_metadata, take
from circuits.formats.folding import to_dictionary
from circuits.formats.npz import load_npz
from circuits.sites import Site

NPZ = "params.npz"

LOWER = {"w_enc": "W_enc", "w_dec": "W_dec", "affine_skip_connection": "W_skip"}
"""Gemma Scope 2's names in its `params.safetensors`, and ours."""


def load_dictionary(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read the dictionary in the file or folder `path`, whichever library saved it.

    Args:
        path: A folder as in the table above, or a file of one.
        device: The CPU unless given.
        dtype: Of the matrices; float32 unless given. Vectors are kept in float32 or wider.

    Raises:
        UserError: no dictionary there, or more than one; a file that is missing, damaged, or does
            not hold what it should; a dictionary that no `Dictionary` can compute.
    """
    kind, path = _format(Path(path))
    load = {
        "npz": load_npz,
        "saelens": saelens.load_saelens,
        "dictionary_learning": dictionary_learning.load_dictionary_learning,
        "circuit_tracer": circuit_tracer.load_circuit_tracer,
        "plain": load_plain,
    }[kind]
    return load(path, device=device, dtype=dtype)


def load_plain(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Dictionary:
    """Read a safetensors file of the five arrays of a `Dictionary`, and maybe `W_skip`.

    As nothing beside it says otherwise, the file is taken at its word: `W_enc [d_in, d_sae]` reads
    the input itself (not less `b_dec`), and `W_skip` is `[d_in, d_out]`. Gemma Scope 2's names
    (`w_enc`, `w_dec`, `affine_skip_connection`) are read too. The `threshold` must be there:
    without it a ReLU dictionary (which has zeros) cannot be told from a TopK one.

    Raises:
        UserError: the file is missing or damaged, or is SAELens' own without its config; a
            `config.json` beside it names another architecture; arrays missing, unknown, of the
            wrong shape or dtype, or not finite.
    """
    path = Path(path)
    if path.name == saelens.WEIGHTS:
        raise UserError(
            f"{path} has no {saelens.CONFIG} beside it, in which SAELens says whether b_dec is "
            "subtracted from the input; fetch that too"
        )
    config = path.with_name("config.json")
    if config.is_file():
        architecture = read_json(config).get("architecture")
        if architecture not in ("jump_relu", "jumprelu"):
            raise UserError(
                f"{config}: architecture {architecture!r} beside a plain safetensors file, which "
                "is read as jump_relu; remove the file if that is what it is"
            )
    tensors = read_safetensors(path)
    named = {LOWER.get(key, key): tensor for key, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise UserError(
            f"{path} holds an array under two names; its arrays are {', '.join(tensors)}"
        )
    if set(named) == set(ARRAYS) - {"threshold"}:
        raise UserError(
            f"{path} lacks threshold and does not say what switches its latents on; save zeros "
            "[d_sae] as threshold if it is a ReLU dictionary"
        )
    keys = (*ARRAYS, "W_skip") if "W_skip" in named else ARRAYS
    arrays = take(named, keys, path, what="a JumpReLU dictionary", dtype=dtype)
    return to_dictionary(arrays, path, device=device, dtype=dtype)


def site_of(path: str | Path) -> Site | None:
    """Where the dictionary at `path` says that it belongs; `None` if it does not, or to no site.

    SAELens and dictionary_learning say it in their configs, Gemma Scope in the names of the folders
    (`gemma-scope-2b-pt-mlp/layer_3/width_16k/average_l0_14/params.npz`), a plain safetensors file
    in its header, if it was saved with `metadata={"hook_name": "blocks.3.hook_mlp_out"}`; a layer
    of a cross-layer transcoder in the name of its files.

    Raises:
        UserError: no dictionary there, or more than one; a config that is missing or damaged, or
            that contradicts itself.
    """
    kind, path = _format(Path(path))
    if kind == "saelens":
        return saelens.site_of_saelens(path)
    if kind == "dictionary_learning":
        return dictionary_learning.site_of_dictionary_learning(path)
    if kind == "circuit_tracer":
        return circuit_tracer.site_of_circuit_tracer(path)
    if kind == "plain":
        return saelens.site_of_hook(safetensors_metadata(path).get("hook_name"))
    parts = path.absolute().parts
    if len(parts) < 5 or path.name != NPZ:
        return None
    file = file_at(parts[-5], "/".join(parts[-4:-1]))
    return file.site if file else None


def find_dictionaries(folder: str | Path) -> dict[Site, Path]:
    """Every folder in or below `folder` that holds a dictionary, by site, in their order.

    Of cross-layer transcoders, which share a folder, the file of each layer.

    Raises:
        UserError: there is none; one that does not say its site; two that say the same one.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds dictionaries")
    folders = sorted(p for p in (folder, *folder.rglob("*")) if p.is_dir() and _candidates(p))
    places = [place for found in folders for place in _places(found)]
    if not places:
        raise UserError(f"no dictionary in or below {folder}; {_EXPECTED}")
    found: dict[Site, Path] = {}
    for place in places:
        site = site_of(place)
        if site is None:
            raise UserError(
                f"{place} does not say to which site it belongs; load it from Python by site: "
                "dictionaries={'mlp.3': path}"
            )
        if site in found:
            raise UserError(f"two dictionaries for {site}: {found[site]} and {place}; keep one")
        found[site] = place
    return dict(sorted(found.items()))


_EXPECTED = (
    f"a dictionary's folder holds {NPZ} (Gemma Scope), {saelens.CONFIG} and {saelens.WEIGHTS} "
    f"(SAELens), {dictionary_learning.WEIGHTS} and {dictionary_learning.CONFIG} "
    "(dictionary_learning), W_enc_L.safetensors and W_dec_L.safetensors of each layer L and "
    f"{circuit_tracer.CONFIG} (circuit-tracer's cross-layer transcoders), or one *.safetensors"
)


def _format(path: Path) -> tuple[str, Path]:
    """The format of the dictionary at `path`, and the path that its reader takes."""
    if path.is_dir():
        candidates = _candidates(path)
        if len(candidates) > 1:
            names = ", ".join(f"{kind} ({place.name})" for kind, place in candidates)
            raise UserError(f"{path} holds more than one dictionary: {names}; give one's file")
        if not candidates:
            raise UserError(f"no dictionary in {path}; {_EXPECTED}")
        return candidates[0]
    if not path.exists():
        raise UserError(f"there is no {path}; give the file or folder of a dictionary")
    if path.suffix == ".npz":
        return "npz", path
    if path.suffix == ".pt":
        return "dictionary_learning", path
    if circuit_tracer.layer_of(path) is not None:
        return "circuit_tracer", path
    has_config = path.with_name(saelens.CONFIG).is_file()
    if path.name == saelens.CONFIG or (path.name == saelens.WEIGHTS and has_config):
        return "saelens", path.parent
    if path.suffix == ".safetensors":
        if has_config:
            raise UserError(
                f"{path} lies beside SAELens' {saelens.CONFIG} and is not {saelens.WEIGHTS}; give "
                "the folder, or move the file elsewhere if it is another dictionary"
            )
        return "plain", path
    raise UserError(f"{path} is no file of a dictionary; {_EXPECTED}")


def _places(folder: Path) -> list[Path]:
    """What to read of a folder with a dictionary: itself, or file by file."""
    candidates = _candidates(folder)
    shared = any(kind == "circuit_tracer" for kind, _ in candidates)
    return [path for _, path in candidates] if shared else [folder]


def _candidates(folder: Path) -> list[tuple[str, Path]]:
    """The dictionaries in `folder` itself, each with its format."""
    found = []
    if (folder / NPZ).is_file():
        found.append(("npz", folder / NPZ))
    if (folder / saelens.CONFIG).is_file():
        found.append(("saelens", folder))
    else:
        for file in sorted(folder.glob("*.safetensors")):
            if circuit_tracer.layer_of(file) is None:
                found.append(("plain", file))
            elif file.name.startswith("W_dec"):  # the larger one of a layer's two
                found.append(("circuit_tracer", file))
    if (folder / dictionary_learning.WEIGHTS).is_file():
        found.append(("dictionary_learning", folder))
    return found
