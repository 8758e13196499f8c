"""A fact about the data that somebody should know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """`kind` groups findings of one sort, `message` is one sentence, `numbers` its evidence (plain JSON data)."""

    kind: str
    severity: Severity
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "severity": self.severity, "message": self.message, "numbers": self.numbers}
