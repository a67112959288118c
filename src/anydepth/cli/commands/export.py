"""`anydepth export`."""

from __future__ import annotations

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, depths_of


def export(
    model: options.Model,
    exits: options.ExportExits = None,
    depth: options.ExportDepth = None,
    out: options.ExportOut = None,
    policy: options.ExportPolicy = None,
    threshold: options.ExportThreshold = None,
    blocks: options.Blocks = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write MODEL as ONNX graphs between which samples may exit; anydepth.onnx.router runs them without torch."""
    from anydepth.cli.render import show_exported
    from anydepth.jobs.export import ExportSettings, run_export

    terminal.quiet_libraries()
    settings = ExportSettings(
        model=model,
        exits=None if exits is None else depths_of(exits),
        depth=depth,
        policy=policy,
        threshold=threshold,
        blocks=blocks,
        trust_remote_code=trust_remote_code,
    )
    with terminal.bars(enabled=not as_json) as progress:
        result = run_export(settings, out or default_folder(model, suffix="-onnx"), progress=progress)
    show_exported(result, as_json=as_json)
