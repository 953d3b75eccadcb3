"""Reruns a table or figure of one of the papers: ``python -m experiments.run --list_tables``. See :mod:`experiments.runner`."""

from experiments.runner.command import run

if __name__ == "__main__":
    run()
