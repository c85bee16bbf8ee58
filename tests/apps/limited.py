"""The app of tests/apps/wire.py with small limits, to be sent bodies that are too large and too slow."""

from datetime import timedelta

from lro import AllowAnonymous, Service
from lro.limits import Limits
from tests.apps.wire import idle

BODY, SECONDS = 1000, 0.6

limits = Limits(body=BODY, body_time=timedelta(seconds=SECONDS))
service = Service("sqlite:///lro.db", jobs=[idle], auth=AllowAnonymous(), limits=limits)
app = service.app("/v1")
