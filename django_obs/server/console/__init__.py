"""lanes, /proc, control file, recent traces and lines -> history, tables, waterfall -> templates -> pages: the console.

Everything is read when somebody looks; nobody looking, nothing is done (see ``history``).
"""
