"""Everything that is claimed about an accelerator, measured by one command; ``__main__`` is what to read first."""
