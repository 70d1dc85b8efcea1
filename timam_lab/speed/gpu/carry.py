"""Packs what a GPU machine without a network needs beside the code: `python -m timam_lab.speed.gpu.carry` -> carried/.

    commit.txt                 the commit, as such a machine has no git
    MiniLM/                    the language model of `quick`, half precision
    mobilenet_v2.safetensors   its backbone, half precision
    wheels/                    what timam, papermill and a kernel need beyond torch, transformers, pandas and the like

Half precision changes a weight by at most 1 in 2,000. Statistics and biases keep single precision.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch import nn

from timam.config import MINILM
from timam.files import replacing_folder
from timam.models.weights import load_backbone, load_language_model, load_tokenizer
from timam.provenance import commit
from timam_lab.speed.gpu import CARRIED, REPOSITORY

LIMIT = 64 << 20  # bytes: of the repository's files and the carried ones together
# Without jedi and debugpy, 9 MB: completion and the debugger, which a headless kernel does without.
WHEELS = """
    pydantic pydantic-core annotated-types typing-inspection
    papermill nbclient nbformat jsonschema jsonschema-specifications referencing rpds-py fastjsonschema tenacity
    entrypoints ipykernel ipython ipython-pygments-lexers jupyter-client jupyter-core platformdirs pyzmq tornado comm
    traitlets matplotlib-inline nest-asyncio2 prompt-toolkit wcwidth pexpect ptyprocess stack-data executing asttokens
    pure-eval
"""


def halved(model: nn.Module) -> dict[str, torch.Tensor]:
    """The matrices of a state dict in half precision, the rest as it is."""
    return {
        k: (v.half() if v.is_floating_point() and v.ndim > 1 else v).contiguous() for k, v in model.state_dict().items()
    }


def pack_weights(folder: Path) -> None:
    language_model, features = load_language_model(MINILM, True), load_backbone("mobilenet_v2", "IMAGENET1K_V1")
    load_tokenizer(MINILM).save_pretrained(folder / "MiniLM")
    language_model.config.save_pretrained(folder / "MiniLM")
    save_file(halved(language_model), folder / "MiniLM/model.safetensors", {"format": "pt"})
    body = {name: value for name, value in halved(features).items() if name.startswith("features.")}
    save_file(body, folder / "mobilenet_v2.safetensors")


def download_wheels(folder: Path, python: str) -> None:
    """Wheels of the installed versions, for Linux on x86-64. Raises CalledProcessError where there is none."""
    from importlib.metadata import version

    wanted = [f"{name}=={version(name)}" for name in WHEELS.split()]
    platforms = [f"--platform=manylinux_2_{n}_x86_64" for n in (5, 12, 17, 24, 26, 27, 28, 31, 34)]
    platforms += [f"--platform=manylinux{n}_x86_64" for n in (1, 2010, 2014)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    subprocess.run([*command, f"--python-version={python}", "--implementation=cp", "-d", folder, *wanted], check=True)


def sizes(root: Path, carried: Path) -> dict[str, int]:
    """Bytes of what travels: the checkout's files that git does not ignore, by their first folder, and `carried`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split("\0")
    found: dict[str, int] = {}
    for path in (root / name for name in set(listed) if name):
        if path.is_file():
            key = path.relative_to(root).parts[0]
            found[key] = found.get(key, 0) + path.stat().st_size
    return found | {"carried": sum(f.stat().st_size for f in carried.rglob("*") if f.is_file())}


def check_size(root: Path, carried: Path, limit: int = LIMIT) -> str:
    """The sizes in words. Raises ClickException where they exceed the limit."""
    found = sizes(root, carried)
    largest = sorted(found.items(), key=lambda entry: -entry[1])[:4]
    named = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in largest)
    text = f"{sum(found.values()) / 2**20:.1f} of {limit / 2**20:.0f} MiB: {named}"
    if sum(found.values()) > limit:
        raise click.ClickException(f"{text}. `git sparse-checkout set --no-cone '/*' '!/reports/'` leaves reports out")
    return text


@click.command()
@click.option("--python", default="3.12", show_default=True, help="Of the GPU machine.")
@click.option("--weights-only", is_flag=True, help="No wheels: the machine has papermill and pydantic.")
def main(python: str, weights_only: bool) -> None:
    """Packs the folder carried/ and checks its size."""
    with replacing_folder(CARRIED) as folder:
        (folder / "commit.txt").write_text(f"{commit(REPOSITORY / 'timam', REPOSITORY / 'timam_lab')}\n")
        pack_weights(folder)
        if not weights_only:
            download_wheels(folder / "wheels", python)
    click.echo(check_size(REPOSITORY, CARRIED))


if __name__ == "__main__":
    main()
