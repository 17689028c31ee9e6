"""checks -> directory -> line -> span -> sample -> port -> processes -> collisions: each link, and whether it holds.

Run by ``manage.py obs doctor``. What it sends goes through the real pipelines, is marked as its own, and is taken back
where that is possible.
"""
