"""Hosted models behind your own server: `hosted.Fallback` runs `chain` over the providers, one file each on `base`.

A provider's call sends its `requests` and reads `answers` into an alpha; `compose` makes the answer of a server.
"""

from cutaway.fallback.chain import NeedsDetection, NobodyServed, Served, Tried
from cutaway.fallback.hosted import Fallback, Outputs

__all__ = ["Fallback", "NeedsDetection", "NobodyServed", "Outputs", "Served", "Tried"]
