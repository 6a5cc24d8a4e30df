"""The whole service under mixed load for an hour: `python -m load_tests.service_soak --out DIRECTORY`."""
