"""Where a result comes from: commit, code, versions, device."""

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import accelerate
import torch
import torchvision
import transformers

import timam

_PACKAGE = Path(timam.__file__).parent


def provenance(device: torch.device) -> dict[str, Any]:
    """Commit, versions and device of this process, for metrics.json."""
    cpu = f"{platform.processor() or platform.machine()} CPU"
    return {
        "timam": timam.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, transformers, accelerate)},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu,
        "threads": torch.get_num_threads(),
    }


def code_fingerprint() -> str:
    """8 hex digits that identify the package's source code. Unlike the commit, other files do not change them."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:8]


def commit(*folders: Path) -> str | None:
    """The package's commit, "-dirty" if the folders (by default the package) differ. None: an installed copy."""
    if known := os.environ.get("TIMAM_COMMIT"):  # where a copy of the code knows better than git
        return known

    def git(*arguments: object) -> str:
        command = ["git", *map(str, arguments)]
        return subprocess.run(command, cwd=_PACKAGE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an installed copy may be inside another repository
        differs = git("status", "--porcelain", "--", *(folders or [_PACKAGE]))
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if differs else "")
    except (OSError, subprocess.CalledProcessError):
        return None
