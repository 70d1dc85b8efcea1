"""Speed, measured next to what the code replaces: `python -m timam_lab.speed.training --output FILE.md`, and so on.

Each module writes one table of reports/benchmarks; `growth` is what notebook 08 draws.
"""
