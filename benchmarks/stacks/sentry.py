from __future__ import annotations

import os

from benchmarks.project.settings import *  # noqa: F403


def start() -> None:
    import sentry_sdk

    sentry_sdk.init(dsn=os.environ["BENCH_SINK_URL"].replace("//", "//key@") + "/1", traces_sample_rate=1.0)


def flush() -> None:
    import sentry_sdk

    sentry_sdk.flush(600.0)
