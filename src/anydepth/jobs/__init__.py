"""One job per command, without the command line: each file has `XSettings`, `run_x(settings, out)` and its result.

Fields of the same name mean the same in all settings:

- model: a hub id, a folder, or timm:NAME; see `anydepth.models.loading.load`.
- data: see `anydepth.data.sources.splits`; split: by default test, else validation, else the only one.
- wanted: columns, a limit, and the seed of everything random.
- batch_size: samples of a forward pass; max_length: tokens at which texts are cut.
- tolerance: maximum disagreement rate α; confidence: the level 1 − δ of the certificate; against: "model" or "labels",
  see `anydepth.stats.certificates.fails`.
- blocks: dotted name of the list of blocks, for a model that has several; device: as torch names it, if None the best
  there is; trust_remote_code: run the Python code that comes with the checkpoint.

`progress` is called with what is done, how much there is, and what it is. Errors name fields of the settings and
arguments (as `name=value`, `(name)` or a name with an underscore); `anydepth.cli.app` names the options instead.
"""
