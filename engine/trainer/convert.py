"""Turn a GGUF file into a 16-bit Hugging Face folder. Run: python -m engine.trainer.convert FILE FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers.utils import logging

from engine.trainer import models


def main(file: str, folder: str) -> int:
    """Convert `file` into `folder`; return the exit code."""
    logging.disable_progress_bar()
    try:
        model, tokenizer = models.load_gguf(Path(file))
    except ImportError:
        print("reading GGUF needs the gguf package: pip install 'fusion-tui[gguf]'", file=sys.stderr)
        return 1
    except Exception as error:  # noqa: BLE001  (a damaged file fails anywhere in the readers; the edge of the process)
        print(f"not a GGUF model that transformers can read ({error})".replace("\n", " "), file=sys.stderr)
        return 1
    models.save(model, tokenizer, Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
