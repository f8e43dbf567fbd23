"""Clients of the KSI daemon."""
