"""The machine that a benchmark ran on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

PRECISIONS = ("avx512_bf16", "amx_bf16", "avx512f", "avx2")  # the processor flags that matter for inference speed


def processor() -> dict[str, Any]:
    """The processor's name, the number of cores that this process may use, and which of :data:`PRECISIONS` it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    return {
        "name": facts.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [p for p in PRECISIONS if p in flags],
    }
