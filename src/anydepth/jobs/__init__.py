"""One job per command, without the command line: each file has `run_x(settings, out)` and its result.

All settings are in `anydepth.jobs.settings`, frozen and checked; their fields are the options of the command line.
Every output folder has them as `settings.yaml`, with which the command runs again: `anydepth trace --config
DIR/settings.yaml`, or `run_trace(TraceSettings(**TraceSettings.read("DIR/settings.yaml")), out)`.

`progress` is called with what is done, how much there is, and what it is. Errors name fields of the settings and
arguments (as `name=value`, `(name)` or a name with an underscore); `anydepth.cli.app` names the options instead.
"""
