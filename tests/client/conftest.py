"""Property tests here judge results, not speed: the machine may be busy."""

from hypothesis import settings

settings.register_profile("client", deadline=None)
settings.load_profile("client")
