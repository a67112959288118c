"""`anydepth compare`."""

from __future__ import annotations

from anydepth.cli import options, terminal
from anydepth.cli.parsing import default_folder, names_of


def compare(
    traces: options.Traces,
    out: options.CompareOut = None,
    measures: options.CrossMeasures = None,
    despite: options.Despite = None,
    permutations: options.Permutations = 0,
    seed: options.Seed = 0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare traces of the same data: what differs by depth, and which depths of two models are alike."""
    from anydepth.cli.render import show_compared
    from anydepth.jobs.compare import CompareSettings, run_compare

    terminal.quiet_libraries()
    settings = CompareSettings(
        traces=tuple(traces),
        measures=None if measures is None else () if measures == "none" else names_of(measures),
        despite=names_of(despite or ""),
        permutations=permutations,
        seed=seed,
    )
    with terminal.bars(enabled=not as_json) as progress:
        result = run_compare(settings, out or default_folder(*traces, suffix="-compare"), progress=progress)
    show_compared(result, as_json=as_json)
