"""What every settings class checks of its values, and how a refusal reads."""

from __future__ import annotations

from typing import Any

from jaxdeblur.errors import InputError


def require(condition: bool, message: str) -> None:
    """Raises InputError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InputError(message)


def not_none(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def check_kernel_size(size: int) -> None:
    """Raises InputError unless ``size`` is a positive odd number of pixels, at least 3."""
    require(
        size >= 3 and size % 2 == 1,
        f"kernel size {size} cannot be used: give an odd number of pixels, 3 or more, or 'auto'",
    )


def require_positive(config: Any, what: str, *names: str) -> None:
    """Raises InputError, which calls ``config`` a ``what``, unless its fields of these names are 1 or more."""
    for name in names:
        require(getattr(config, name) >= 1, f"{what}: {name} must be 1 or more, got {getattr(config, name)}")
