"""`anydepth demo`."""

from __future__ import annotations

from pathlib import Path

from anydepth.cli import options, terminal


def demo(
    out: options.DemoOut = Path("runs/demo"),
    epochs: options.DemoEpochs = 20,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Train a small vision transformer on real digits in two ways, and trace both. Needs no download."""
    from anydepth.cli.render import show_demo
    from anydepth.jobs.demo import DemoSettings, run_demo

    terminal.quiet_libraries()
    with terminal.bars(enabled=not as_json) as progress:
        result = run_demo(DemoSettings(epochs=epochs, seed=seed), out, progress=progress)
    show_demo(result, as_json=as_json)
