from __future__ import annotations

from benchmarks.stacks import start

start()

from django.core.asgi import get_asgi_application  # noqa: E402

application = get_asgi_application()
