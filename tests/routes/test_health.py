"""healthz and readyz."""

import httpx2
import pytest

from lro import AllowAnonymous, Service


async def test_a_started_service_is_alive_and_ready_without_authorization(url: str) -> None:
    class Nobody(AllowAnonymous):
        def authenticate(self, request: object, /) -> None:  # type: ignore[override]  # lets nobody in
            return None

    async with Service(url, jobs=[], auth=Nobody()) as service:
        transport = httpx2.ASGITransport(app=service)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
            assert (await client.get("/operations")).status_code == 401
            for path in ("/healthz", "/readyz"):
                response = await client.get(path)
                assert (response.status_code, response.json()) == (200, {})
            assert (await client.post("/healthz")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_failing_loop_makes_it_unready_and_not_dead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Service(url, jobs=[], auth=AllowAnonymous()) as service:
        assert service.ready
        monkeypatch.setattr(service._store._supervisor, "_failing", {"writer"})  # type: ignore[attr-defined]
        transport = httpx2.ASGITransport(app=service)
        async with httpx2.AsyncClient(transport=transport, base_url="http://host") as client:
            assert (await client.get("/healthz")).status_code == 200
            unready = await client.get("/readyz")
        assert unready.status_code == 503
        assert unready.json()["error"]["details"][0]["reason"] == "NOT_READY"
        monkeypatch.undo()
    assert not service.ready
