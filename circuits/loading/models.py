"""A model through TransformerLens: by the name of a Gemma 2, or from a Hugging Face folder."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from circuits.errors import UserError, first_of
from circuits.families import families
from circuits.formats.array_files import read_json, safetensors_names
from circuits.loading.hub import Revision, download_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUNDLED = Path(__file__).parents[1] / "bundled"
"""Models that ship with the project: a folder each, with `model/`, `dictionaries/`, `texts.txt`."""

HUB_MODELS = {
    f"gemma-2-{size}{suffix}": f"google/gemma-2-{size}{suffix}"
    for size in ("2b", "9b", "27b")
    for suffix in ("", "-it")
}


TIED = {"embed_tokens.weight", "lm_head.weight"}
"""One weight where embeddings are tied, of which files hold either name."""


def bundled_models() -> list[str]:
    """Names of the models that need no download."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/model"))


def short_name(name: str | Path) -> str:
    """`gemma-2-2b` for `google/gemma-2-2b`, unless that is a folder here.

    Raises:
        UserError: an empty name.
    """
    name = str(name)
    if not name:
        raise UserError(f"the name of a model is empty; give a folder or {', '.join(HUB_MODELS)}")
    return name if Path(name).is_dir() else name.removeprefix("google/")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model_folder(name: str, revision: Revision = None) -> Path:
    """The folder with the weights of `name`, downloaded to the Hugging Face cache if need be.

    `commit_of(folder)` is the commit it was taken from.

    Raises:
        UserError: no such model, the hub refuses or cannot be reached, or a file is damaged.
    """
    if revision is not None and name not in HUB_MODELS:
        raise UserError(
            f"{name} is not fetched from the hub, so it has no revision {revision!r}; leave it out"
        )
    if name in bundled_models():
        return BUNDLED / name / "model"
    if name in HUB_MODELS:
        return download_model(HUB_MODELS[name], revision=revision)
    if Path(name).is_dir():
        return Path(name)
    known = ", ".join([*bundled_models(), *HUB_MODELS])
    raise UserError(f"no model {name!r}; choose {known}, or name a Hugging Face folder that exists")


def load_gemma(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    revision: Revision = None,
) -> TransformerBridge:
    """Gemma 2, or a model of another family, as a TransformerLens bridge without gradients.

    Gradients of its parameters are off; those of activations are left to the caller.

    Args:
        name: `tiny` (bundled), `gemma-2-2b`, `-9b`, `-27b` or their `-it` forms (from the Hugging
            Face hub, with your own access), or a folder in Hugging Face's format with a model of
            any family in `circuits.families`.
        device: CUDA when there is one, by default.
        dtype: By default bfloat16 for the models of the hub (base Gemma 2 is stored in float32,
            which takes twice the memory), and the dtype that a folder is stored in.
        revision: A commit, tag or branch of the model's repository; `main` by default.

    Raises:
        UserError: the model cannot be found, reached or read, lacks weights, or is of no family
            known here.
    """
    from transformer_lens.model_bridge import TransformerBridge  # takes seconds: only when needed

    name = short_name(name)
    _check_device(device, dtype)
    folder = model_folder(name, revision)
    config = _read_config(folder)
    if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{folder} has no tokenizer.json; save the model's tokenizer there too")
    if dtype is None and name in HUB_MODELS:
        dtype = torch.bfloat16
    elif dtype is None:
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        dtype = getattr(torch, str(stored), None)
        if not _is_floating(dtype):
            raise UserError(
                f"{folder / 'config.json'}: dtype {stored!r}; write float32, bfloat16 or float16 "
                "there, or choose one with dtype="
            )
    with _quiet(folder):
        try:
            bridge = TransformerBridge.boot_transformers(
                str(folder), device=str(device or default_device()), dtype=dtype
            )
        except Exception as error:  # whatever a damaged folder makes the libraries raise
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise UserError(
                f"cannot load {folder} as a Hugging Face model: {reason}; "
                "it needs config.json, model.safetensors and the tokenizer's files"
            ) from error
    _check_complete(folder, bridge.original_model)
    bridge.requires_grad_(False)
    bridge.eval()
    return bridge


def _check_device(device: str | torch.device | None, dtype: torch.dtype | None) -> None:
    """Refuse a device that is not there and a dtype that models do not have."""
    if dtype is not None and not _is_floating(dtype):
        raise UserError(f"dtype={dtype!r}; give torch.float32, torch.bfloat16 or torch.float16")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device={str(device)!r} cannot be used: {reason}; try cpu") from error


def _is_floating(dtype: object) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def model_config(bridge: TransformerBridge) -> Any:
    """The Hugging Face configuration of the model below a bridge."""
    return bridge.original_model.config


def _read_config(folder: Path) -> dict:
    """`config.json` of a folder with a model of a family known here."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder} has no config.json; name a Hugging Face model folder")
    config = read_json(path)
    if config.get("model_type") not in families():
        raise UserError(
            f"{folder} holds a model of type {config.get('model_type')!r}; "
            f"give one of type {', '.join(families())}"
        )
    return config


def _check_complete(folder: Path, huggingface: Any) -> None:
    """Refuse a folder that lacks weights: transformers made them up, at random.

    Of `folder` only the headers of safetensors files are read; in others nothing is looked for.
    """
    stored = _stored_names(folder)
    if stored is None:
        return
    prefix = f"{huggingface.base_model_prefix}."  # a model saved without its head has no such
    known = {name.removeprefix(prefix) for name in stored}
    if huggingface.config.tie_word_embeddings and not TIED.isdisjoint(known):
        known |= TIED
    names: dict[Any, list[str]] = {}  # of each weight: the bridge has its own beside the first
    for name, weight in huggingface.named_parameters(remove_duplicate=False):
        names.setdefault(weight, []).append(name.replace("._original_component", ""))
    wanted = {name.removeprefix(prefix) for own in names.values() for name in own}
    missing = [
        own[0]
        for own in names.values()
        if known.isdisjoint(name.removeprefix(prefix) for name in own)
    ]
    if not missing:
        return
    others = sorted(name for name in stored if name.removeprefix(prefix) not in wanted)
    but = f"; it holds others that the model has not: {first_of(others)}" if others else ""
    raise UserError(
        f"{folder} lacks weights: {first_of(missing)}{but}; "
        "save the whole model there, with the config.json that belongs to it"
    )


def _stored_names(folder: Path) -> set[str] | None:
    """The weights in the safetensors files that transformers reads; None where it reads others."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return set(safetensors_names(whole))
    if not index.exists():
        return None
    shards = set(read_json(index)["weight_map"].values())
    return {name for shard in shards for name in safetensors_names(folder / shard)}


@contextmanager
def _quiet(folder: Path):
    """No progress bar for the fraction of a second that a bundled model takes."""
    from transformers.utils import logging

    bundled = folder.is_relative_to(BUNDLED)
    shown = logging.is_progress_bar_enabled()
    if bundled:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if bundled and shown:
            logging.enable_progress_bar()
