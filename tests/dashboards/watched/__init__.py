"""The example project with everything added that a panel shows: tasks, commands, failures of database and cache."""
