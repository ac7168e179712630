"""Studies: the same recipe run several times with one thing changed, every curve fitted, one table.

    variants/*.yaml -> spec -> runs (trainer processes) -> curves -> fits -> compare -> table, plots, results.json

What decides (`fits`, `compare`, `table`) is pure; processes are in `runs`, files in `curves` and `study`. The trainer is
only ever started as a command, and a study that was stopped goes on because every run in it does.
"""
