"""What lies here are pages, whose examples are run; conf.py is for Sphinx, which may not be installed."""

collect_ignore = ["conf.py"]
