"""The container image: its locked requirements, its build and its trial."""
