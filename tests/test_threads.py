"""A request that crosses threads and tasks, and our middleware, which makes it cross none."""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client
from django.urls import path

from django_obs import bind
from django_obs.testing import capture_logs
from tests.test_apps import run

pytestmark = pytest.mark.urls(__name__)


async def hops(request: HttpRequest) -> HttpResponse:
    async def child() -> None:
        await asyncio.sleep(0)
        bind(child=threading.get_ident())

    await sync_to_async(lambda: bind(pool=threading.get_ident()), thread_sensitive=False)()
    await asyncio.gather(asyncio.create_task(child()), child())
    return JsonResponse({"thread": threading.get_ident()})


def starts_a_thread(request: HttpRequest) -> HttpResponse:
    thread = threading.Thread(target=copy_context().run, args=(lambda: bind(thread="its own"),))
    thread.start()
    thread.join()
    async_to_sync(sync_to_async(lambda: bind(both="ways")))()
    return HttpResponse("ok")


urlpatterns = [path("hops/", hops), path("thread/", starts_a_thread)]


def access(lines: list[dict[str, Any]]) -> dict[str, Any]:
    (line,) = [line for line in lines if line["logger"] == "django_obs.access"]
    return line


def test_fields_bound_in_pool_and_child_tasks_are_on_the_line() -> None:
    async def ask() -> Any:
        return await AsyncClient().get("/hops/")

    with capture_logs() as lines:
        response = asyncio.run(ask())

    here = threading.get_ident()
    line = access(lines)
    assert response.json() == {"thread": here}
    assert line["child"] == here
    assert line["pool"] != here


def test_fields_bound_in_a_thread_with_a_copied_context_are_on_the_line() -> None:
    with capture_logs() as lines:
        Client().get("/thread/")

    line = access(lines)
    assert (line["thread"], line["both"]) == ("its own", "ways")


def test_middleware_calls_an_async_view_without_any_thread(tmp_path: Path) -> None:
    done = run(
        """
        configure()
        import asyncio
        from django.http import HttpResponse
        from django.test import AsyncRequestFactory
        from django_obs.middleware import ObservabilityMiddleware

        async def view(request):
            assert threading.current_thread() is threading.main_thread()
            return HttpResponse("ok")

        async def ask():
            response = await ObservabilityMiddleware(view)(AsyncRequestFactory().get("/"))
            response.close()
            names = {thread.name for thread in threading.enumerate()} - {"MainThread"}
            print([name for name in names if not name.startswith("django_obs-")])

        asyncio.run(ask())
        """,
        tmp_path,
        DJANGO_OBS_LOGS_ENABLED="false",
    )

    assert done.stdout == "[]\n"
