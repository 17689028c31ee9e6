"""Times what passes inside the outermost middleware of telemetry."""

from __future__ import annotations

from time import thread_time


class StopwatchMiddleware:
    """The first middleware of the project: inside of what a stack puts before it.

    What a stack puts further in, or around queries and other middleware, counts as the project.
    """

    seconds = 0.0

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        started = thread_time()
        response = self.get_response(request)
        StopwatchMiddleware.seconds += thread_time() - started
        return response
