"""Writing an answer where it was made.

The rule: for what is asked most, and nothing else. FastAPI would go to another thread for it, and each change of
threads waits its turn; the route names its `response_model` all the same, for the document.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Response

from fusion_tui.api.answer import Answer


def written(answer: Answer | Sequence[Answer], status: int = 200) -> Response:
    """Return an answer, or a list of them, as a response; fields that were never set stay away."""
    if isinstance(answer, Answer):
        text = answer.model_dump_json(exclude_unset=True)
    else:
        text = f"[{','.join(one.model_dump_json(exclude_unset=True) for one in answer)}]"
    return Response(text, status, media_type="application/json")
