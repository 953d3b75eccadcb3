"""Every table and figure of the four papers that can be measured, by name. One file for each paper; all of it is data."""

from collections.abc import Mapping
from types import MappingProxyType

from experiments.runner.tables import monte_carlo, selfdeblur, staged, weak
from experiments.runner.tables.entry import Entry, Row

TABLES: Mapping[str, Entry] = MappingProxyType(
    {entry.name: entry for paper in (selfdeblur, monte_carlo, staged, weak) for entry in paper.TABLES}
)

__all__ = ["TABLES", "Entry", "Row"]
