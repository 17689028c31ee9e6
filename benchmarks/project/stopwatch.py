"""Times what the project does with a request, without what stands around it."""

from __future__ import annotations

from time import thread_time


class StopwatchMiddleware:
    """The first middleware of the project: inside of what telemetry puts before, around the page and its queries."""

    seconds = 0.0

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        started = thread_time()
        response = self.get_response(request)
        StopwatchMiddleware.seconds += thread_time() - started
        return response
