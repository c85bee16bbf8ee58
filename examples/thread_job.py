"""A job that blocks is a plain `def`: it runs in a thread, beside the event loop.

    lro serve examples.thread_job:service
    curl -X POST localhost:8000/v1/jobs/folders.zip:run \
        -H 'content-type: application/json' -d '{"params": {"folder": ".", "target": "folder.zip"}}'
"""

import zipfile
from pathlib import Path

from pydantic import BaseModel

from lro import AllowAnonymous, Service, Stopped, SyncContext, job


class Folder(BaseModel):
    folder: str
    target: str


class Progress(BaseModel):
    files_done: int = 0
    bytes_done: int = 0


@job("folders.zip")
def zip_folder(ctx: SyncContext[Progress], params: Folder) -> Progress:
    target, draft = Path(params.target), Path(f"{params.target}.part")
    try:
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(params.folder).rglob("*")):
                if path.is_file() and path not in (target, draft):
                    archive.write(path)
                    done, size = ctx.progress, path.stat().st_size
                    ctx.checkpoint(Progress(files_done=done.files_done + 1, bytes_done=done.bytes_done + size))
    except Stopped:  # raised by the checkpoint: a cancel, a deadline or a shutdown
        draft.unlink()
        raise
    draft.replace(target)
    return ctx.progress


service = Service("sqlite:///lro.db", jobs=[zip_folder], auth=AllowAnonymous())
