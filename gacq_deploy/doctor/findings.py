"""What is a finding, and does one of them stop the main commands?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

FindingStatus = Literal["ok", "absent", "warning", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding: ``fail`` stops the main commands, ``warning`` narrows them, ``absent`` is optional."""

    name: str
    status: FindingStatus
    value: str
    hint: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings; true when none of them fails."""

    checks: tuple[Check, ...]

    def __bool__(self) -> bool:
        return all(check.status != "fail" for check in self.checks)

    def document(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"passed": bool(self), "checks": [asdict(check) for check in self.checks]}
