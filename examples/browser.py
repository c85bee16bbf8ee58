"""A page that starts an operation, follows it and cancels it, in plain JavaScript: `uvicorn examples.browser:app`."""

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse
from starlette.routing import Mount, Route

from examples.thread_job import zip_folder
from lro import AllowAnonymous, Service

service = Service("sqlite:///lro.db", jobs=[zip_folder], auth=AllowAnonymous())


async def page(request: Request) -> FileResponse:
    return FileResponse(Path(__file__).with_name("browser.html"))


app = Starlette(routes=[Route("/", page), Mount("/v1", app=service)], lifespan=service.lifespan)
