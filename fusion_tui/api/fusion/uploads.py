"""Dialect A's route for files that are sent here: where to PUT one. `POST /datasets` makes a dataset of it.

The rule: as in `jobs`: a route translates, calls the service, translates back.
"""

from __future__ import annotations

from fastapi import APIRouter, Request

from fusion_tui.api import body, errors
from fusion_tui.api.access import DATASETS, Engine
from fusion_tui.api.fusion import entries
from fusion_tui.api.signed import address, upload_path

router = APIRouter(tags=["datasets"], responses=errors.documented(401, 403, 421, 422, 503))


@router.post(
    "/uploads/presign",
    dependencies=DATASETS,
    responses=errors.documented(400, 408, 413, 415),
    openapi_extra=body.documented(entries.NewUpload),
)
def presign_upload(request: Request, service: Engine, payload: body.JsonObject) -> entries.PresignedUpload:
    """Return an address to PUT a file to. An upload of which nothing was made in a day goes.

    The address takes one file, of `max_upload_gb` of the settings at most; where that broke off, it takes it again.
    """
    asked = body.validated(entries.NewUpload, payload)
    upload = service.uploads.expect(asked.filename, asked.content_type)
    url = address(request, "PUT", upload_path(upload.id))
    return entries.PresignedUpload(upload_id=upload.id, key=f"uploads/{upload.id}/{upload.filename}", url=url)
