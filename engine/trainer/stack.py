"""What the training interpreter brings, as one JSON document. Run: python -m engine.trainer.stack

The rule: whatever fails to import or to run is an answer, not an end; the document is the last line of the output.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def _words(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else "") or type(error).__name__


def _package() -> str:
    try:
        return version("fusion-tui")
    except PackageNotFoundError:
        return "from source"


def torch_facts() -> dict[str, Any]:
    """Return torch's version, its CUDA build, the kind of device that it reaches, and whether products work there."""
    try:
        import torch

        from engine.trainer import device as devices
    except Exception as error:  # noqa: BLE001  (a broken library fails in many ways; each is the answer)
        return {"error": _words(error)}
    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    unfit = ""
    try:
        sample = torch.ones(64, 64, device=kind)
        (sample @ sample).sum().item()
    except Exception as error:  # noqa: BLE001
        unfit = _words(error)
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "device": kind,
        "bf16": not unfit and devices.has_fast_bf16(torch.device(kind)),
        "unfit": unfit,
    }


def bitsandbytes_facts(device: str) -> dict[str, Any]:
    """Return the version of bitsandbytes after it has quantised a small matrix on `device`."""
    try:
        found = version("bitsandbytes")
    except PackageNotFoundError:
        return {"error": "is not installed"}
    try:
        import torch
        from bitsandbytes import functional

        codes, state = functional.quantize_4bit(torch.ones(64, 64, device=device), quant_type="nf4")
        functional.dequantize_4bit(codes, state).sum().item()
    except Exception as error:  # noqa: BLE001
        return {"version": found, "error": _words(error)}
    return {"version": found, "device": device}


def main() -> None:
    """Print the document."""
    torch = torch_facts()
    facts = {
        "python": platform.python_version(),
        "package": _package(),
        "torch": torch,
        "bitsandbytes": bitsandbytes_facts(torch.get("device", "cpu")),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
