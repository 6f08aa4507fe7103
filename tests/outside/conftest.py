"""The programs are run, not imported: by ``test_outside.py`` here, by ``scripts/smoke`` from a wheel."""

collect_ignore = ["core.py", "extras.py"]
