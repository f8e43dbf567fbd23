"""The `ksi` command: one small module for each of its commands.

The modules here import click and the standard library, never pydantic: `ksi status` answers in the
time that Python takes to start.
"""
