"""One job per command, without the command line: each file has its function, public in `anydepth`, and its result.

All settings are in `anydepth.jobs.settings`, frozen and checked; their fields are the options of the command line and
the keywords of the functions (`anydepth.jobs.keywords`). Every output folder has them as `settings.yaml`, with which
the job runs again: `anydepth trace --config DIR/settings.yaml`, `trace(**TraceSettings.read("DIR/settings.yaml"))`.
Models and data come by name or as objects; `anydepth.jobs.inputs` makes a stack and batches of either.

`progress` is called with what is done, how much there is, and what it is. Errors name fields of the settings and
arguments (as `name=value`, `(name)` or a name with an underscore); `anydepth.cli.app` names the options instead.
"""
