"""Runs read back from their folders: listed, compared, drawn and told in a report."""
