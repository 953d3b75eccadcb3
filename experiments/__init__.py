"""Commands that reproduce and measure; see README.md beside this file."""
