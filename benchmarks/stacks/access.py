"""One JSON line per request, as a site without a package for it writes it."""

from __future__ import annotations

import logging
from time import perf_counter

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.utils.decorators import sync_and_async_middleware

logger = logging.getLogger("access")


def line(request, response, started):
    logger.info(
        "request",
        extra={
            "method": request.method,
            "path": request.path,
            "status": response.status_code,
            "duration": perf_counter() - started,
        },
    )
    return response


@sync_and_async_middleware
def AccessLineMiddleware(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            started = perf_counter()
            return line(request, await get_response(request), started)

        markcoroutinefunction(middleware)
    else:

        def middleware(request):
            started = perf_counter()
            return line(request, get_response(request), started)

    return middleware
