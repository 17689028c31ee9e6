"""boards -> panels -> Grafana's JSON, and Prometheus' rules beside them -> files in the directory that is asked for.

Written out by ``manage.py obs dashboards DIR``. Nothing here is imported by a site.
"""
