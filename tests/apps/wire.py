"""An app to be sent what no client sends; its operations wait for a time that never comes."""

from datetime import timedelta

from lro import AllowAnonymous, Context, Service, job


@job("idle")
async def idle(ctx: Context) -> None:
    del ctx


service = Service("sqlite:///lro.db", jobs=[idle], auth=AllowAnonymous(), drain=timedelta(0))
app = service.app("/v1")
