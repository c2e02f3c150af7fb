"""Numbers as text, the same in the terminal and in the report."""

from __future__ import annotations

UNKNOWN = "–"


def percent(share: float | None) -> str:
    """A share as a whole per cent, such as `97 %`; a dash for None."""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def megabytes(count: float | None) -> str:
    """Bytes as `12.3 MB` (10^6 bytes), or in B, kB, GB or TB; a dash for None."""
    if count is None:
        return UNKNOWN
    if count < 1000:
        return f"{count:.0f} B"
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB" if count < 1e12 else f"{count / 1e12:.2f} TB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def number(value: object, form: str = "{:,.3g}") -> str:
    """A value in a format; a dash for None."""
    return UNKNOWN if value is None else form.format(value)


def plain(value: float) -> str:
    """A value with three digits, or as a whole number if it has more: `0.0123`, `12,345`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: `1 round`, `2 rounds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time as `45 s`, `12 min` or `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
