"""The subcommands of ``manage.py obs``, a module each: ``HELP``, ``add_arguments(parser)`` and ``run(out, **options)``.

They are imported by ``manage.py help``: what costs time is imported where it is used.
"""
