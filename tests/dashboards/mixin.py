"""What the published dashboards and alerts of django-mixin need: metrics, and the labels that they choose or group by.

Facts taken from https://github.com/adinhodovic/django-mixin at 5ba6788 (grafana.com 17617, 17616, 17613 and 24933).
``DJANGO_MIXIN_CHECKOUT`` names a checkout, whose queries are then run as they stand.
"""

from __future__ import annotations

# Labels that the scrape adds.
TARGET = frozenset({"cluster", "namespace", "job"})

FACTS: dict[str, frozenset[str]] = {
    metric: TARGET | set(labels)
    for metric, labels in {
        "django_http_requests_total_by_view_transport_method_total": ("view", "method"),
        "django_http_responses_total_by_status_view_method_total": ("view", "method", "status"),
        "django_http_requests_latency_seconds_by_view_method_bucket": ("view", "method", "le"),
        "django_http_exceptions_total_by_view_total": ("view",),
        "django_http_exceptions_total_by_type_total": ("type",),
        "django_http_responses_total_by_templatename_total": ("templatename",),
        "django_http_requests_body_total_bytes_bucket": ("le",),
        "django_db_query_duration_seconds_bucket": ("vendor", "le"),
        "django_db_execute_total": (),
        "django_db_errors_total": ("type",),
        "django_db_new_connections_total": ("vendor",),
        "django_cache_get_total": (),
        "django_cache_get_hits_total": ("backend",),
        "django_cache_get_misses_total": ("backend",),
        "django_migrations_applied_total": (),
        "django_migrations_unapplied_total": (),
        "django_model_inserts_total": ("model",),
        "django_model_updates_total": ("model",),
        "django_model_deletes_total": ("model",),
    }.items()
}
