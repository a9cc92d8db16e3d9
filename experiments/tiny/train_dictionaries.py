"""Train the bundled model's dictionaries: JumpReLU autoencoders at every site, and transcoders.

1. Read: what the sites of a layer read and write on the small language.
2. Train: each site's dictionary, see `experiments.tiny.jumprelu`.
3. Save: in Gemma Scope's layout, the folder named by the mean L0 on held-out text.
"""

import json
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import click
import torch
from tqdm import tqdm
from transformers import Gemma2ForCausalLM

from circuits.dictionaries import Dictionary
from circuits.files import write_atomically
from circuits.formats.npz import save_npz
from circuits.sites import Site
from experiments.tiny.activations import Activations, collect
from experiments.tiny.jumprelu import Recipe, fit
from experiments.tiny.train_model import BUNDLED

FOLDERS = {
    "attn": "tiny-scope-att",
    "mlp": "tiny-scope-mlp",
    "resid": "tiny-scope-res",
    "transcoder": "tiny-scope-transcoders",
}
TRAINED_ON = 500_000  # tokens of activations, taken again and again in random order
MEASURED_ON = 50_000  # held-out tokens that name the folder


def load_model(out: Path) -> Gemma2ForCausalLM:
    """The trained model below `out`, gradients of its parameters off."""
    model = Gemma2ForCausalLM.from_pretrained(out / "model", attn_implementation="eager")
    return model.requires_grad_(False).eval()


def train_layer(out: Path, layer: int, kinds: tuple[str, ...], recipe: Recipe) -> list[dict]:
    """Train and save the dictionaries of a layer; a record of each."""
    torch.set_num_threads(1)
    model = load_model(out)
    sites = tuple(Site(layer, kind) for kind in kinds)
    train = collect(model, sites, n_tokens=TRAINED_ON, seed=recipe.seed + 1)
    test = collect(model, sites, n_tokens=MEASURED_ON, seed=recipe.seed + 2, split="heldout")
    return [_train_site(out, site, train.pop(site), test.pop(site), recipe) for site in sites]


def _train_site(
    out: Path, site: Site, train: Activations, test: Activations, recipe: Recipe
) -> dict:
    started = time.process_time()
    dictionary, first = None, []
    with tqdm(fit(train.read, train.written, recipe), total=recipe.steps, desc=str(site)) as bar:
        for step, (error, l0, result) in enumerate(bar):
            dictionary = result or dictionary
            if step < 20:
                first.append(error)
            if step % 50 == 0:
                bar.set_postfix(error=f"{error:.4f}", l0=f"{l0:.1f}")
    assert dictionary is not None
    mean_l0 = (dictionary.encode(test.read) > 0).sum(1).float().mean().item()
    save_npz(dictionary, _path(out, site, dictionary, mean_l0), overwrite=True)
    seconds = round(time.process_time() - started)
    return {"site": str(site), "average_l0": mean_l0, "cpu_seconds": seconds, "errors": first}


def _path(out: Path, site: Site, dictionary: Dictionary, mean_l0: float) -> Path:
    """Where Gemma Scope's layout has it; an older dictionary of the site is removed."""
    width = f"width_{dictionary.d_sae // 1024}k"
    home = out / "dictionaries" / FOLDERS[site.kind] / f"layer_{site.layer}"
    if home.exists():
        shutil.rmtree(home)
    return home / width / f"average_l0_{round(mean_l0)}" / "params.npz"


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=BUNDLED, show_default="bundled")
@click.option("--layers", default="0,1,2,3", show_default=True, help="Which layers.")
@click.option("--kinds", default=",".join(FOLDERS), show_default=True, help="Which kinds of site.")
@click.option("--target-l0", type=float, default=Recipe.target_l0, show_default=True)
@click.option("--steps", type=int, default=Recipe.steps, show_default=True)
@click.option("--seed", type=int, default=Recipe.seed, show_default=True)
@click.option("--workers", type=int, default=2, show_default=True, help="Processes, a layer each.")
@click.option("--force", is_flag=True, help="Replace the dictionaries that are there.")
def main(
    out: Path,
    layers: str,
    kinds: str,
    target_l0: float,
    steps: int,
    seed: int,
    workers: int,
    force: bool,
) -> None:
    if not (out / "model").exists():
        raise click.UsageError(f"{out / 'model'} does not exist; train the model first")
    chosen = tuple(kinds.split(","))
    if not set(chosen) <= set(FOLDERS):
        raise click.UsageError(f"--kinds {kinds}; choose from {', '.join(FOLDERS)}")
    homes = [out / "dictionaries" / FOLDERS[kind] for kind in chosen]
    there = [str(home) for home in homes if home.exists()]
    if there and not force:
        raise click.UsageError(f"{', '.join(there)} exists already; pass --force")
    recipe = Recipe(target_l0=target_l0, steps=steps, seed=seed)
    started, records = time.perf_counter(), []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(train_layer, out, int(layer), chosen, recipe) for layer in layers.split(",")
        ]
        for job in as_completed(jobs):
            for record in job.result():
                records.append(record)
                tqdm.write(f"{record['site']}: L0 {record['average_l0']:.1f}")
    run = {
        "command": f"python -m experiments.tiny.train_dictionaries --kinds {kinds}",
        "recipe": asdict(recipe),
        "tokens": TRAINED_ON,
        "sites": sorted(records, key=lambda record: Site.parse(record["site"])),
        "wall_seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
    }
    _record(out / "dictionaries_training.json", run)


def _record(path: Path, run: dict) -> None:
    """Add a run to those recorded; what it trained again is struck out of the older ones."""
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    again = {site["site"] for site in run["sites"]}
    for older in runs:
        older["sites"] = [site for site in older["sites"] if site["site"] not in again]
    kept = [older for older in runs if older["sites"]]
    text = json.dumps({"runs": [*kept, run]}, indent=1) + "\n"
    write_atomically(path, text, overwrite=True)


if __name__ == "__main__":
    main()
