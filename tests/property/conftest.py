"""Settings of hypothesis for this folder: a busy machine is no failure."""

from hypothesis import settings

settings.register_profile("ksi", deadline=None)
settings.load_profile("ksi")
