"""Whether half precision pays on this processor: bfloat16 is emulated where no unit computes it, many times slower."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

AUTO = "auto"
CHOICES = (AUTO, "fp32", "bf16")
# As /proc/cpuinfo spells them: Intel and AMD under "flags", Arm under "Features".
UNITS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
CPUINFO = Path("/proc/cpuinfo")


def has_bf16_units(cpuinfo: Path = CPUINFO, system: str = sys.platform) -> bool:
    """Whether the processor multiplies bfloat16 in hardware; False where the system does not tell.

    Linux tells in `cpuinfo`, macOS by sysctl. torch itself cannot be asked: it says yes wherever it can emulate.
    """
    if system == "darwin":
        command = ["sysctl", "-n", "hw.optional.arm.FEAT_BF16"]
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() == "1"
        except (OSError, subprocess.SubprocessError):
            return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        name, _, values = line.partition(":")
        if name.strip() in ("flags", "Features") and UNITS & set(values.split()):
            return True
    return False


def precision_for_cpu(asked: str = AUTO) -> str:
    """What was asked for; "auto" is bf16 where the processor has units for it, else fp32."""
    if asked != AUTO:
        return asked
    return "bf16" if has_bf16_units() else "fp32"
