"""The dashboards: which metrics are shown together, and what they tell."""

from __future__ import annotations

from .panels import Board, Panel, Query, Variable

RATE = "[$__rate_interval]"
OF_VIEW = 'view=~"$view",'
FAILED = 'status=~"5..",'


def rate(metric: str, by: str = "", more: str = "") -> str:
    """Return the summed rate of a counter, by labels, of the series with more matchers."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{more}@}}{RATE}))"


def quantiles(histogram: str, by: str = "", more: str = "", *, exemplars: bool = False) -> tuple[Query, ...]:
    """Return the median, the 95th and the 99th percentile."""
    return tuple(quantile(share, histogram, by, more, exemplars=exemplars) for share in (0.5, 0.95, 0.99))


def quantile(share: float, histogram: str, by: str = "", more: str = "", *, exemplars: bool = False) -> Query:
    """Return a percentile, by labels."""
    labels = f"le, {by}" if by else "le"
    legend = " ".join(["p" + f"{share * 100:g}", *(f"{{{{{each}}}}}" for each in by.split(", ") if each)])
    expression = f"histogram_quantile({share:g}, {rate(histogram + '_bucket', labels, more)})"
    return Query(expression, legend, exemplars=exemplars)


def stat(title: str, unit: str, expression: str, description: str = "", group: str = "") -> Panel:
    """Return a panel of one number."""
    return Panel(title, unit, (Query(expression),), description, "stat", group=group)


RESPONSES = "django_http_responses_total_by_status_total"
RESPONSES_BY_VIEW = "django_http_responses_total_by_status_view_method_total"
LATENCY = "django_http_requests_latency_including_middlewares_seconds"
VIEW_LATENCY = "django_http_requests_latency_seconds_by_view_method"
DURATION = "http_server_request_duration_seconds"

REQUESTS = Board(
    "requests",
    "Requests",
    "How many requests all processes answer, how fast, and how many fail.",
    (
        stat("Requests", "reqps", rate(RESPONSES)),
        stat(
            "Answered with 5xx",
            "percentunit",
            f"({rate(RESPONSES, more=FAILED)} or vector(0)) / {rate(RESPONSES)}",
        ),
        stat("95th percentile", "s", quantile(0.95, LATENCY).expression),
        stat("In progress", "short", "sum (http_server_active_requests{@})"),
        Panel("Requests by status", "reqps", (Query(rate(RESPONSES, "status"), "{{status}}"),)),
        Panel(
            "Requests by method",
            "reqps",
            (Query(rate("django_http_requests_total_by_method_total", "method"), "{{method}}"),),
        ),
        Panel(
            "Latency",
            "s",
            quantiles(DURATION, exemplars=True),
            "Each dot is one request: its exemplar leads to its trace.",
        ),
        Panel(
            "Distribution of latency",
            "short",
            (Query(rate(f"{DURATION}_bucket", "le"), "{{le}}", exemplars=True),),
            kind="heatmap",
        ),
        Panel(
            "Wait before the site",
            "s",
            quantiles("django_http_requests_queue_seconds"),
            "From the proxy's X-Request-Start until the process took the request up: too few workers show here first.",
        ),
        Panel(
            "Latency by route (95th percentile)",
            "s",
            (quantile(0.95, DURATION, "http_route", exemplars=True),),
            by_route=True,
            group="Routes",
        ),
        Panel("Requests by route", "reqps", (Query(rate(f"{DURATION}_count", "http_route"), "{{http_route}}"),)),
        Panel(
            "Errors by route",
            "reqps",
            (
                Query(
                    rate(f"{DURATION}_count", "http_route, error_type", 'error_type!="",'),
                    "{{http_route}} {{error_type}}",
                ),
            ),
            by_route=True,
        ),
        Panel(
            "Exceptions by type",
            "reqps",
            (Query(rate("django_http_exceptions_total_by_type_total", "type"), "{{type}}"),),
            group="Exceptions and bodies",
        ),
        Panel("Bodies of requests", "bytes", quantiles("django_http_requests_body_total_bytes")),
        Panel("Bodies of responses", "bytes", quantiles("django_http_responses_body_total_bytes")),
    ),
)

VIEWS = Board(
    "views",
    "Views",
    "Where the time goes, view by view.",
    (
        Panel(
            "Views by the time that they take",
            "percentunit",
            (Query(f"topk(25, {rate(f'{VIEW_LATENCY}_sum', 'view, method', OF_VIEW)})"),),
            "Seconds a second: 2 means that two workers do nothing else.",
            "table",
        ),
        Panel(
            "Requests",
            "reqps",
            (Query(rate(RESPONSES_BY_VIEW, "view, method", OF_VIEW), "{{method}} {{view}}"),),
        ),
        Panel(
            "Latency (95th percentile)",
            "s",
            (quantile(0.95, VIEW_LATENCY, "view", OF_VIEW, exemplars=True),),
        ),
        Panel(
            "Mean latency",
            "s",
            (
                Query(
                    f"{rate(f'{VIEW_LATENCY}_sum', 'view', OF_VIEW)} / "
                    f"{rate(f'{VIEW_LATENCY}_count', 'view', OF_VIEW)}",
                    "{{view}}",
                ),
            ),
        ),
        Panel(
            "Failures",
            "reqps",
            (Query(rate(RESPONSES_BY_VIEW, "view, status", 'view=~"$view",status=~"[45]..",'), "{{status}} {{view}}"),),
        ),
        Panel(
            "Exceptions",
            "reqps",
            (Query(rate("django_http_exceptions_total_by_view_total", "view", OF_VIEW), "{{view}}"),),
        ),
        Panel(
            "Templates",
            "reqps",
            (
                Query(
                    f"topk(10, {rate('django_http_responses_total_by_templatename_total', 'templatename')})",
                    "{{templatename}}",
                ),
            ),
        ),
    ),
    (Variable("view", RESPONSES_BY_VIEW, "view"),),
)

DATA = Board(
    "data",
    "Database and cache",
    "What the site asks of its databases and caches.",
    (
        Panel(
            "Queries",
            "ops",
            (Query(rate("django_db_execute_total", "alias"), "{{alias}}"),),
            group="Databases",
        ),
        Panel("Duration of queries", "s", quantiles("django_db_query_duration_seconds", "alias")),
        Panel(
            "Queries per request",
            "short",
            (Query(f"{rate('django_db_execute_total')} / {rate(RESPONSES)}", "queries"),),
            "Those of tasks and commands included. A step up is often a loop that queries.",
        ),
        Panel(
            "Errors",
            "ops",
            (Query(rate("django_db_errors_total", "alias, type"), "{{alias}} {{type}}"),),
        ),
        Panel(
            "New connections",
            "ops",
            (
                Query(rate("django_db_new_connections_total", "alias"), "{{alias}}"),
                Query(rate("django_db_new_connection_errors_total", "alias"), "{{alias}}: failed"),
            ),
            "As many as requests: CONN_MAX_AGE is 0.",
        ),
        Panel(
            "Bulk statements",
            "ops",
            (Query(rate("django_db_execute_many_total", "alias"), "{{alias}}"),),
        ),
        Panel(
            "Hit ratio",
            "percentunit",
            (
                Query(
                    f"{rate('django_cache_get_hits_total', 'backend')} / {rate('django_cache_get_total', 'backend')}",
                    "{{backend}}",
                ),
            ),
            group="Caches",
        ),
        Panel(
            "Look-ups",
            "ops",
            (
                Query(rate("django_cache_get_hits_total", "backend"), "{{backend}}: hit"),
                Query(rate("django_cache_get_misses_total", "backend"), "{{backend}}: miss"),
                Query(rate("django_cache_get_fail_total", "backend"), "{{backend}}: failed"),
            ),
        ),
        Panel(
            "Duration by operation (95th percentile)",
            "s",
            (quantile(0.95, "django_cache_operation_duration_seconds", "alias, operation"),),
        ),
        Panel(
            "Operations",
            "ops",
            (
                Query(
                    rate("django_cache_operation_duration_seconds_count", "alias, operation"), "{{alias}} {{operation}}"
                ),
            ),
        ),
        Panel(
            "Errors of the cache",
            "ops",
            (Query(rate("django_cache_operation_errors_total", "alias, operation"), "{{alias}} {{operation}}"),),
        ),
        Panel(
            "Model operations",
            "ops",
            (
                Query(rate("django_model_inserts_total", "model"), "{{model}}: insert"),
                Query(rate("django_model_updates_total", "model"), "{{model}}: update"),
                Query(rate("django_model_deletes_total", "model"), "{{model}}: delete"),
            ),
            "Of the models with ExportModelOperationsMixin.",
            group="Models",
        ),
        Panel(
            "Migrations",
            "short",
            (
                Query("max by (connection) (django_migrations_applied_total{@})", "{{connection}}: applied"),
                Query("max by (connection) (django_migrations_unapplied_total{@})", "{{connection}}: not applied"),
            ),
        ),
    ),
)


def work(prefix: str, name: str, outcomes: tuple[str, ...]) -> tuple[Query, ...]:
    """Return the rate of each outcome of tasks, by name."""
    return tuple(Query(rate(f"{prefix}_{outcome}_total", name), f"{{{{{name}}}}}: {outcome}") for outcome in outcomes)


TASKS = Board(
    "tasks",
    "Tasks and commands",
    "Celery's tasks, Django's tasks and management commands.",
    (
        Panel(
            "Celery tasks",
            "ops",
            work("celery_task", "name", ("sent", "received", "started", "succeeded", "failed", "retried")),
            group="Celery",
        ),
        Panel("Wait in the queue", "s", quantiles("celery_task_queue_seconds", "queue_name")),
        Panel("Runtime (95th percentile)", "s", (quantile(0.95, "celery_task_runtime", "name"),)),
        Panel(
            "Failures by exception",
            "ops",
            (Query(rate("celery_task_failed_total", "name, exception"), "{{name}} {{exception}}"),),
        ),
        Panel(
            "Workers",
            "short",
            (
                Query("sum by (hostname) (celery_worker_up{@})", "{{hostname}}: up"),
                Query("sum by (hostname) (celery_worker_tasks_active{@})", "{{hostname}}: tasks at work"),
            ),
        ),
        Panel(
            "Django tasks",
            "ops",
            work("django_task", "task", ("sent", "started", "succeeded", "failed")),
            group="Django's tasks",
        ),
        Panel("Wait in the queue of Django's tasks", "s", (quantile(0.95, "django_task_queue_seconds", "queue_name"),)),
        Panel("Runtime of Django's tasks", "s", (quantile(0.95, "django_task_runtime_seconds", "task"),)),
        Panel(
            "Runs of commands",
            "ops",
            (Query(rate("django_command_runs_total", "command, status"), "{{command}}: {{status}}"),),
            group="Management commands",
        ),
        Panel("Duration of commands", "s", (quantile(0.95, "django_command_duration_seconds", "command"),)),
        Panel(
            "Since the last success",
            "s",
            (
                Query(
                    "time() - max by (command) (django_command_last_success_timestamp_seconds{@})",
                    "{{command}}",
                ),
            ),
        ),
    ),
)

PROCESSES = Board(
    "processes",
    "Processes",
    "What the live processes use, by role; runmetrics reads it from /proc.",
    (
        Panel("Processes", "short", (Query("count by (role) (process_start_time_seconds{@})", "{{role}}"),)),
        Panel("CPU by role", "percentunit", (Query(rate("process_cpu_seconds_total", "role"), "{{role}}"),)),
        Panel("Memory by role", "bytes", (Query("sum by (role) (process_resident_memory_bytes{@})", "{{role}}"),)),
        Panel(
            "CPU by process",
            "percentunit",
            (Query(rate("process_cpu_seconds_total", "instance, role, lane"), "{{role}} {{lane}}"),),
        ),
        Panel("Memory by process", "bytes", (Query("process_resident_memory_bytes{@}", "{{role}} {{lane}}"),)),
        Panel(
            "Starts of processes",
            "short",
            (Query(f"sum by (role) (changes(process_start_time_seconds{{@}}{RATE}))", "{{role}}"),),
            "A worker that takes the lane of another one: recycling, a deploy, or crashes.",
        ),
        Panel("Threads", "short", (Query("sum by (role) (process_threads{@})", "{{role}}"),)),
        Panel(
            "Open files, of those allowed",
            "percentunit",
            (Query("max by (role) (process_open_fds{@} / process_max_fds{@})", "{{role}}"),),
        ),
        Panel(
            "Pauses of the garbage collector (99th percentile)",
            "s",
            (quantile(0.99, "python_gc_pause_seconds", "generation"),),
        ),
    ),
)


def pipeline(signal: str, outcomes: tuple[str, ...]) -> tuple[Query, ...]:
    """Return the rates of what became of a signal's items."""
    return tuple(Query(rate(f"django_obs_{signal}_{outcome}_total"), outcome.replace("_", " ")) for outcome in outcomes)


PIPELINES = Board(
    "pipelines",
    "Pipeline health",
    "Whether logs, spans and metrics themselves arrive.",
    (
        Panel("Log lines", "cps", pipeline("log_records", ("written", "failed")), group="Logs"),
        Panel(
            "Log lines dropped, by level",
            "cps",
            (Query(rate("django_obs_log_records_dropped_total", "level"), "{{level}}"),),
            "The queue was full: whoever reads the lines is slower than the site writes them.",
        ),
        Panel("Log lines that wait", "short", (Query("sum (django_obs_log_records_queued{@})", "lines"),)),
        Panel(
            "Spans",
            "cps",
            pipeline("spans", ("exported", "sampled_out")),
            group="Traces",
        ),
        Panel(
            "Spans lost",
            "cps",
            pipeline("spans", ("dropped", "failed")),
            "Dropped: the queue was full. Failed: the collector did not take them.",
        ),
        Panel("Spans that wait", "short", (Query("sum (django_obs_spans_queued{@})", "spans"),)),
        Panel("Lanes", "short", (Query("sum by (state) (django_obs_lanes{@})", "{{state}}"),), group="Metrics"),
        Panel("Series", "short", (Query("sum by (instance) (django_obs_series{@})", "{{instance}}"),)),
        Panel(
            "Label sets beyond METRICS.MAX_SERIES",
            "cps",
            (Query(rate("django_obs_series_dropped_total", "instance"), "{{instance}}"),),
        ),
        Panel("Index", "bytes", (Query("sum by (instance) (django_obs_index_bytes{@})", "{{instance}}"),)),
        Panel(
            "Damage and failures",
            "short",
            (
                Query("sum (django_obs_index_damaged_lines{@})", "damaged lines of the index"),
                Query(rate("django_obs_collector_failures_total"), "custom collectors that raised"),
                Query(rate("django_obs_collector_timeouts_total"), "custom collectors that took too long"),
            ),
        ),
        Panel(
            "Duration of a scrape",
            "s",
            (Query("max by (instance) (django_obs_scrape_duration_seconds{@})", "{{instance}}"),),
        ),
    ),
)

BOARDS = (REQUESTS, VIEWS, DATA, TASKS, PROCESSES, PIPELINES)
