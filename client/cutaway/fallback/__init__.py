"""Hosted models behind your own server: `chain` calls the providers, one file each on `base`.

A provider's call sends its `requests` and reads `answers` into an alpha; `cutouts` makes the answer of a server.
"""

from cutaway.fallback.chain import Fallback, NeedsDetection, NobodyServed, Outputs, Served, Tried

__all__ = ["Fallback", "NeedsDetection", "NobodyServed", "Outputs", "Served", "Tried"]
