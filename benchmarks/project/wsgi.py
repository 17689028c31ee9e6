from __future__ import annotations

from benchmarks.stacks import start

start()

from django.core.wsgi import get_wsgi_application  # noqa: E402

application = get_wsgi_application()
